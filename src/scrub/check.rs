//! Validates national numbers, payment cards and bank accounts by their check digits and dates.
//!
//! Every function takes digits and upper-case letters without separators, and returns true if they can be such a
//! number. Their length must already match. Sources: the issuers' published rules, named at each function.

/// Returns the digits; `None` if the text has other characters.
fn digits(text: &str) -> Option<Vec<u32>> {
    text.chars().map(|c| c.to_digit(10)).collect()
}

fn weighted(digits: &[u32], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(d, w)| d * w).sum()
}

/// Returns true if all characters are equal: nobody has such a number, but many check digits accept it.
fn uniform(text: &str) -> bool {
    text.bytes().all(|b| b == text.as_bytes()[0])
}

/// Luhn's mod 10 (ISO/IEC 7812-1, annex B).
pub fn luhn(text: &str) -> bool {
    let Some(digits) = digits(text) else { return false };
    let doubled = |(i, d): (usize, &u32)| if i % 2 == 0 { *d } else { d * 2 / 10 + d * 2 % 10 };
    digits.iter().rev().enumerate().map(doubled).sum::<u32>().is_multiple_of(10)
}

/// A payment card: first digits and length of a known issuer, and Luhn.
pub fn card(text: &str) -> bool {
    let first = |n: usize| text.get(..n).and_then(|t| t.parse::<u32>().ok()).unwrap_or(0);
    let known = match text.len() {
        13 => first(1) == 4,
        14 => first(2) == 36 || first(2) == 38 || (300..=305).contains(&first(3)),
        15 => matches!(first(2), 34 | 37),
        16 => {
            matches!(first(1), 4 | 6)
                || (51..=55).contains(&first(2))
                || (2221..=2720).contains(&first(4))
                || (3528..=3589).contains(&first(4))
        }
        17..=19 => matches!(first(1), 4 | 6),
        _ => false,
    };
    known && !uniform(text) && luhn(text)
}

/// An IBAN: 15 to 34 characters (ISO 13616); with the first four moved to the end, mod 97-10 (ISO/IEC 7064) is 1.
pub fn iban(text: &str) -> bool {
    if !(15..=34).contains(&text.len()) || !text.is_ascii() {
        return false;
    }
    let turned = text[4..].bytes().chain(text[..4].bytes());
    let step = |rest: u32, b: u8| match b {
        b'0'..=b'9' => (rest * 10 + u32::from(b - b'0')) % 97,
        _ => (rest * 100 + u32::from(b.to_ascii_uppercase() - b'A') + 10) % 97,
    };
    turned.fold(0, step) == 1
}

/// Returns true if the day exists. 29 February is accepted for every year below 100 (two digits, or unknown).
pub fn day(year: u32, month: u32, day: u32) -> bool {
    let leap = (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400) || year < 100;
    let last = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=last).contains(&day)
}

fn number(text: &str) -> u32 {
    text.parse().unwrap_or(0)
}

/// United States, social security number: no area 000, 666 or from 900, no group 00, no serial 0000 (SSA, 2011).
pub fn us(text: &str) -> bool {
    let area = number(&text[..3]);
    area != 0 && area != 666 && area < 900 && number(&text[3..5]) != 0 && number(&text[5..]) != 0
}

/// Sweden, personnummer and samordningsnummer (day + 60): Luhn over the last ten digits (Skatteverket, SKV 704).
pub fn se(text: &str) -> bool {
    let ten = &text[text.len() - 10..];
    let (month, d) = (number(&ten[2..4]), number(&ten[4..6]));
    day(number(&ten[..2]), month, if d > 60 { d - 60 } else { d }) && luhn(ten)
}

/// Netherlands, BSN: `9a + 8b + … + 2h - i` is a multiple of 11.
pub fn nl(text: &str) -> bool {
    let Some(d) = digits(text).filter(|_| !uniform(text)) else { return false };
    weighted(&d, &[9, 8, 7, 6, 5, 4, 3, 2, 10]).is_multiple_of(11)
}

/// Spain, DNI and NIE: the letter is number `n mod 23` of a table; X, Y, Z mean 0, 1, 2 (Real Decreto 1553/2005).
pub fn es(text: &str) -> bool {
    let (body, letter) = text.split_at(8);
    let body = match body.as_bytes()[0] {
        b'X' => format!("0{}", &body[1..]),
        b'Y' => format!("1{}", &body[1..]),
        b'Z' => format!("2{}", &body[1..]),
        _ => body.to_string(),
    };
    let place = number(&body) as usize % 23;
    "TRWAGMYFPDXBNJZSQVHLCKE"[place..=place] == *letter
}

/// Brazil, CPF: two check digits, each `(10 Σ w d mod 11) mod 10`.
pub fn br(text: &str) -> bool {
    let Some(d) = digits(text).filter(|_| !uniform(text)) else { return false };
    let check = |n: usize| {
        let sum: u32 = d[..n].iter().enumerate().map(|(i, x)| x * (n as u32 + 1 - i as u32)).sum();
        sum * 10 % 11 % 10 == d[n]
    };
    check(9) && check(10)
}

/// France, NIR: the key is `97 - n mod 97`; 2A and 2B of Corsica count as 19 and 18 (INSEE).
pub fn fr(text: &str) -> bool {
    let body = text[..13].replacen("2A", "19", 1).replacen("2B", "18", 1);
    let month = number(&text[3..5]);
    let known = (1..=12).contains(&month) || (20..=42).contains(&month) || month >= 50;
    known && body.parse::<u64>().is_ok_and(|n| 97 - n % 97 == u64::from(number(&text[13..])))
}

/// United Kingdom, NHS number: the last digit is `11 - Σ (10 - i) d mod 11`, where 11 counts as 0 and 10 is invalid
/// (NHS Data Dictionary).
pub fn uk(text: &str) -> bool {
    let Some(d) = digits(text).filter(|_| !uniform(text)) else { return false };
    (11 - weighted(&d[..9], &[10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11) % 11 == d[9]
}

/// Germany, tax identification number: ISO/IEC 7064 mod 11,10; exactly one of the first ten digits occurs two or three
/// times.
pub fn de(text: &str) -> bool {
    let Some(d) = digits(text).filter(|d| d[0] != 0) else { return false };
    let times = |x: u32| d[..10].iter().filter(|y| **y == x).count();
    let twins = (0..10).filter(|x| times(*x) > 1).count();
    let product = d[..10].iter().fold(10, |p, x| {
        let sum = (x + p) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    twins == 1 && (0..10).all(|x| times(x) <= 3) && (11 - product) % 10 == d[10]
}

/// Italy, codice fiscale: the sum of table values mod 26 is the last letter (Decreto ministeriale 23/12/1976).
pub fn it(text: &str) -> bool {
    const ODD: [u32; 26] =
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23];
    let value = |b: u8| u32::from(if b.is_ascii_digit() { b - b'0' } else { b - b'A' });
    let (body, last) = text.as_bytes().split_at(15);
    let of = |(i, b): (usize, &u8)| if i % 2 == 0 { ODD[value(*b) as usize] } else { value(*b) };
    body.iter().enumerate().map(of).sum::<u32>() % 26 == value(last[0])
}

/// Poland, PESEL: weights 1, 3, 7, 9; the month encodes the century.
pub fn pl(text: &str) -> bool {
    let Some(d) = digits(text) else { return false };
    day(number(&text[..2]), number(&text[2..4]) % 20, number(&text[4..6]))
        && weighted(&d, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1]).is_multiple_of(10)
}

/// Finland, henkilötunnus: the last character is number `n mod 31` of a table, n being the other nine digits.
pub fn fi(text: &str) -> bool {
    let place = digits(&text[..9]).map(|d| d.iter().fold(0u64, |n, x| n * 10 + u64::from(*x)) as usize % 31);
    day(number(&text[4..6]), number(&text[2..4]), number(&text[..2]))
        && place.is_some_and(|p| "0123456789ABCDEFHJKLMNPRSTUVWXY"[p..=p] == text[9..])
}

/// Canada, social insurance number: Luhn; none begins with 0 or 8.
pub fn ca(text: &str) -> bool {
    !text.starts_with(['0', '8']) && luhn(text)
}

/// China, resident identity number: a birthday and ISO/IEC 7064 mod 11-2 (GB 11643-1999).
pub fn cn(text: &str) -> bool {
    let Some(d) = digits(&text[..17]) else { return false };
    let year = number(&text[6..10]);
    let sum = weighted(&d, &[7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]) as usize % 11;
    (1900..2100).contains(&year)
        && day(year, number(&text[10..12]), number(&text[12..14]))
        && "10X98765432"[sum..=sum] == text[17..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples from issuers or standards, or numbers made by the rule; and numbers that differ in one character.
    #[test]
    fn check_digits_tell_true_numbers_from_near_ones() {
        type CheckFn = fn(&str) -> bool;
        let cases: [(&str, CheckFn, &[&str], &[&str]); 15] = [
            (
                "card",
                card,
                &["4111111111111111", "378282246310005", "5555555555554444", "30569309025904"],
                &["4111111111111112", "0000000000000000", "9999999999999995", "411111111111"],
            ),
            ("iban", iban, &["GB82WEST12345698765432", "DE89370400440532013000"], &["GB82WEST12345698765431", "GB82"]),
            ("us", us, &["078051120", "219099999"], &["000123456", "666123456", "900123456", "123006789", "123450000"]),
            ("se", se, &["8112189876", "198112189876", "6408233234"], &["8112189877", "8113189876", "811218987X"]),
            ("nl", nl, &["111222333", "123456782"], &["111222334", "000000000"]),
            ("es", es, &["12345678Z", "X1234567L", "Y1234567X"], &["12345678A", "X1234567M"]),
            ("br", br, &["52998224725", "11144477735"], &["52998224724", "11111111111"]),
            ("fr", fr, &["255081416802538", "180126955222380"], &["255081416802539", "255131416802538"]),
            ("uk", uk, &["9434765919", "4010232137"], &["9434765918", "1111111111"]),
            ("de", de, &["86095742719", "47036892816", "65929970489"], &["86095742718", "12345678901"]),
            ("it", it, &["RSSMRA85T10A562S"], &["RSSMRA85T10A562T"]),
            ("pl", pl, &["44051401359", "02070803628"], &["44051401358", "44151401359"]),
            ("fi", fi, &["131052308T"], &["131052308U", "311152308T"]),
            ("ca", ca, &["130692544"], &["130692545", "046454286"]),
            ("cn", cn, &["11010519491231002X"], &["110105194912310021", "11010519491331002X"]),
        ];
        for (name, rule, right, wrong) in cases {
            right.iter().for_each(|n| assert!(rule(n), "{name}: {n} is one"));
            wrong.iter().for_each(|n| assert!(!rule(n), "{name}: {n} is none"));
        }
    }

    #[test]
    fn days_exist_in_their_year() {
        assert!(day(2024, 2, 29) && !day(2023, 2, 29) && !day(1900, 2, 29) && day(0, 2, 29) && !day(2024, 13, 1));
    }
}
