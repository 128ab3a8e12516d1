//! Compares quantised weights with bitsandbytes, bit for bit (fixtures/quantised), and their products with those of the
//! dequantised weights.

use crate::support::{device, tensors};
use ft::error::Error;
use ft::nn::{Quantisation, QuantisedFormat, QuantisedWeight, TableFormat, Weight};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const FOUR_BITS: [(&str, QuantisedFormat); 2] = [("nf4", QuantisedFormat::Nf4), ("fp4", QuantisedFormat::Fp4)];

/// Returns true if two tensors have the same bits, those of zeros included.
fn same_bits(found: &Tensor, expected: &Tensor) -> bool {
    let bits = |t: &Tensor| t.contiguous().view([-1]).view_dtype(Kind::Uint8);
    found.kind() == expected.kind() && found.size() == expected.size() && bits(found).equal(&bits(expected))
}

fn quantise(weight: &Tensor, format: QuantisedFormat, double: bool) -> QuantisedWeight {
    QuantisedWeight::quantise(weight, Quantisation::new(format, double), device()).unwrap()
}

#[test]
fn four_bits_are_those_of_bitsandbytes() {
    let fixture = tensors("quantised/weights.safetensors");
    // Of weights whose scales have an exact sum; see the generator.
    for name in ["whole", "odd", "groups", "zeros"] {
        let weight = &fixture[&format!("{name}.weight")];
        for (kind, format) in FOUR_BITS {
            // Of the largest weight the fixture has only what the others do not test.
            let large = name == "groups";
            for (double, suffix) in [(false, "plain"), (true, "double")].into_iter().skip(usize::from(large)) {
                let at = |part: &str| &fixture[&format!("{name}.{kind}.{suffix}.{part}")];
                let found = quantise(weight, format, double);
                let stored: Vec<Tensor> = found.tensors().iter().map(|t| t.to_device(Device::Cpu)).collect();
                let expected = [Some(at("codes")), Some(at("scales")), double.then(|| at("scale_scales"))];
                for (found, expected) in stored.iter().zip(expected.into_iter().flatten()) {
                    assert!(same_bits(found, expected), "{name} {kind} {suffix}: {found} {expected}");
                }
                for (ending, dtype) in
                    [("f32", Kind::Float), ("bf16", Kind::BFloat16)].into_iter().take(2 - usize::from(large))
                {
                    let dense = found.dense(dtype).to_device(Device::Cpu);
                    // FP4 has two zeros; the sign of one depends on which of its kernels bitsandbytes takes.
                    let same = if kind == "fp4" { dense.equal(at(ending)) } else { same_bits(&dense, at(ending)) };
                    assert!(same, "{name} {kind} {suffix} {ending}");
                }
            }
        }
    }
}

/// The mean of the scales may differ in its last bit, because bitsandbytes adds in an order of its own.
#[test]
fn doubly_quantised_scales_differ_from_bitsandbytes_by_the_rounding_of_their_mean() {
    let fixture = tensors("quantised/weights.safetensors");
    let weight = &fixture["normal.weight"];
    for (kind, format) in FOUR_BITS {
        let found = quantise(weight, format, true);
        let at = |part: &str| &fixture[&format!("normal.{kind}.double.{part}")];
        assert!(same_bits(&found.tensors()[0].to_device(Device::Cpu), at("codes")));
        let dense = found.dense(Kind::Float).to_device(Device::Cpu);
        let gap = ((dense - at("f32")).abs().max() / at("f32").abs().max()).double_value(&[]);
        assert!(gap < 1e-6, "{kind}: {gap}");
    }
}

#[test]
fn int8_is_that_of_bitsandbytes() {
    let fixture = tensors("quantised/weights.safetensors");
    for name in ["whole", "odd", "normal"] {
        let at = |part: &str| &fixture[&format!("{name}.int8.{part}")];
        let found = quantise(at("weight"), QuantisedFormat::Int8, true);
        for (found, part) in found.tensors().iter().zip(["codes", "scales"]) {
            assert!(same_bits(&found.to_device(Device::Cpu), at(part)), "{name} {part}");
        }
        assert!(same_bits(&found.dense(Kind::Float).to_device(Device::Cpu), at("f32")), "{name}");
    }
    let zeros = quantise(&Tensor::zeros([2, 9], (Kind::Float, Device::Cpu)), QuantisedFormat::Int8, false);
    assert_eq!(zeros.dense(Kind::Float).abs().max().double_value(&[]), 0.0);
}

/// Numbers are rounded to three bits of fraction: by at most 2^-4 of themselves, or of the smallest number with all three, which is 2^-6 / 448 of
/// the largest.
#[test]
fn fp8_has_one_scale_and_the_nearest_numbers() {
    tch::manual_seed(23);
    let weight = Tensor::randn([37, 50], (Kind::Float, Device::Cpu)) * 0.03;
    let found = quantise(&weight, QuantisedFormat::Fp8, true);
    let [codes, scale] = found.tensors()[..] else { panic!("codes and a scale") };
    assert!(codes.kind() == Kind::Float8e4m3fn && codes.size() == [37, 50] && scale.numel() == 1);
    let largest = weight.abs().max().double_value(&[]);
    assert!((scale.to_device(Device::Cpu).double_value(&[0, 0]) * 448.0 / largest - 1.0).abs() < 1e-6);
    let dense = found.dense(Kind::Float).to_device(Device::Cpu);
    let allowed = (weight.abs() / 16.0).clamp_min(largest / 448.0 / 1024.0) * 1.000_01;
    assert!(((&dense - &weight).abs() - allowed).max().double_value(&[]) <= 0.0);
    assert!((dense.abs().max().double_value(&[]) / largest - 1.0).abs() < 1e-6);
    let again = quantise(&dense, QuantisedFormat::Fp8, true).dense(Kind::Float).to_device(Device::Cpu);
    assert!((again - &dense).abs().max().double_value(&[]) <= 1e-6 * largest, "numbers of the format stay");
    let zeros = quantise(&Tensor::zeros([2, 9], (Kind::Float, Device::Cpu)), QuantisedFormat::Fp8, false);
    assert_eq!(zeros.dense(Kind::Float).abs().max().double_value(&[]), 0.0);
}

/// Quantises a table some rows at a time.
fn by_rows(table: &Tensor) -> ft::error::Result<QuantisedWeight> {
    let [count, width] = table.size()[..] else { panic!("a table has two dimensions") };
    QuantisedWeight::quantise_by_rows([count, width], TableFormat::Int8, device(), |rows| {
        assert!((rows.end - rows.start) * width <= 1 << 20, "{rows:?}: a part is at most 4 MiB in float32");
        Ok(table.narrow(0, rows.start, rows.end - rows.start))
    })
}

/// Of 2,500 rows, 1,024 are read at a time; in bfloat16, as they are in most checkpoints.
#[test]
fn a_table_that_is_read_by_rows_has_the_codes_of_the_whole() {
    tch::manual_seed(17);
    let table = (Tensor::randn([2500, 1024], (Kind::Float, Device::Cpu)) * 0.1).to_kind(Kind::BFloat16);
    let _ = table.get(2100).zero_();
    let found = by_rows(&table).unwrap();
    let whole = quantise(&table, QuantisedFormat::Int8, false);
    for (found, expected) in found.tensors().iter().zip(whole.tensors()) {
        assert!(same_bits(&found.to_device(Device::Cpu), &expected.to_device(Device::Cpu)));
    }
    assert_eq!(found.bytes(), TableFormat::Int8.quantisation().bytes([2500, 1024]));
    // Codes are 127 x / s, rounded, for the largest magnitude s of a row; written down without the code under test.
    let numbers = Vec::<f32>::try_from(table.to_kind(Kind::Float).view([-1])).unwrap();
    let codes = Vec::<i8>::try_from(found.tensors()[0].to_device(Device::Cpu).view([-1])).unwrap();
    for (row, codes) in numbers.chunks(1024).zip(codes.chunks(1024)) {
        let scale = row.iter().fold(0f64, |most, x| most.max(f64::from(x.abs())));
        for (x, code) in row.iter().zip(codes) {
            let exact = if scale > 0.0 { 127.0 * f64::from(*x) / scale } else { 0.0 };
            assert!((exact - f64::from(*code)).abs() <= 0.5 + 1e-4, "{x} of {scale}: {code}");
        }
    }
}

/// Of a table only the rows that are looked up are dequantised; its product is that of the dequantised numbers.
#[test]
fn rows_of_a_table_are_those_of_its_numbers() {
    let table = Tensor::randn([300, 77], (Kind::Float, Device::Cpu));
    let weight = Weight::Quantised(by_rows(&table).unwrap());
    let ids = Tensor::from_slice(&[299i64, 0, 7, 7, 128]).to_device(device());
    let expected = weight.dense(Kind::Float).index_select(0, &ids);
    assert!(same_bits(&weight.rows(&ids), &expected));
    let Weight::Quantised(quantised) = &weight else { unreachable!() };
    let picked = quantised.select_rows(&ids).unwrap();
    assert!(picked.shape() == [5, 77] && picked.bytes() == 5 * 77 + 5 * 4);
    assert!(same_bits(&picked.dense(Kind::BFloat16), &expected.to_kind(Kind::BFloat16)));
    let four_bits = quantise(&table, QuantisedFormat::Nf4, true);
    assert!(!four_bits.has_whole_rows() && four_bits.select_rows(&ids).is_err());
}

#[test]
fn a_table_with_a_number_that_is_not_finite_is_refused() {
    let table = Tensor::ones([3000, 512], (Kind::Float, Device::Cpu));
    let _ = table.get(2999).get(511).fill_(f64::INFINITY);
    assert!(by_rows(&table).unwrap_err().to_string().contains("NaN or infinite"));
    let unreadable = |_| Err(Error::user("the file ends here"));
    let e = QuantisedWeight::quantise_by_rows([4, 4], TableFormat::Int8, device(), unreadable).unwrap_err();
    assert!(e.to_string().contains("the file ends here"));
}

#[test]
fn sizes_are_as_predicted() {
    let weight = Tensor::randn([130, 100], (Kind::Float, Device::Cpu));
    let mut bytes = BTreeMap::new();
    for format in [QuantisedFormat::Nf4, QuantisedFormat::Fp4, QuantisedFormat::Int8, QuantisedFormat::Fp8] {
        for double in [false, true] {
            let found = quantise(&weight, format, double);
            assert_eq!(found.bytes(), found.format().unwrap().bytes([130, 100]), "{format:?} {double}");
            bytes.insert((format.name(), double), found.bytes());
        }
    }
    // Per parameter: 4 bits, and a scale of 8 or 32 bits for each 64.
    assert!(bytes[&("nf4", true)] < 13000 * 52 / 100 && bytes[&("nf4", false)] < 13000 * 57 / 100, "{bytes:?}");
    assert_eq!(bytes[&("int8", true)], 13000 + 4 * 130);
    assert_eq!(bytes[&("fp8", true)], 13000 + 4);
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    for format in [QuantisedFormat::Nf4, QuantisedFormat::Int8, QuantisedFormat::Fp8] {
        let weight = Tensor::ones([4, 70], (Kind::Float, Device::Cpu));
        let _ = weight.get(2).narrow(0, 11, 1).fill_(f64::NAN);
        let refused = QuantisedWeight::quantise(&weight, Quantisation::new(format, true), device()).unwrap_err();
        assert!(refused.to_string().contains("NaN or infinite"), "{refused}");
    }
}

/// Forward, backward and gradients of a layer of more than one tile and of one that is a single tile.
#[test]
fn products_are_those_of_the_dequantised_weight() {
    tch::manual_seed(31);
    let options = (Kind::Float, device());
    let formats = [QuantisedFormat::Nf4, QuantisedFormat::Fp8];
    for (outputs, inputs, format) in formats.into_iter().flat_map(|f| [(33, 50, f), (130, (1 << 17) + 64, f)]) {
        let weight = Tensor::randn([outputs, inputs], (Kind::Float, Device::Cpu)) * 0.02;
        let quantised = Weight::Quantised(quantise(&weight, format, true));
        let dense = Weight::Dense(quantised.dense(Kind::Float));
        let (x, bias) = (Tensor::randn([3, inputs], options), Tensor::randn([outputs], options));
        let run = |weight: &Weight| {
            let (x, bias) = (x.copy().set_requires_grad(true), bias.copy().set_requires_grad(true));
            let y = weight.product(&x, Some(&bias));
            (&y * &y).sum(Kind::Float).backward();
            [y.detach(), x.grad(), bias.grad(), weight.product_back(&y.detach(), Some(x.detach().copy()))]
        };
        for (i, (found, expected)) in run(&quantised).iter().zip(run(&dense)).enumerate() {
            let gap = ((found - &expected).abs().max() / expected.abs().max()).double_value(&[]);
            assert!(gap < 2e-6, "{format:?} {outputs} x {inputs}, result {i}: {gap}");
        }
    }
}
