//! The kinds of personal data.

use serde::Serialize;

/// Kinds of personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PersonalDataKind {
    /// Addresses of e-mail.
    Email,
    /// Telephone numbers.
    Phone,
    /// National identification numbers with check digits or a distinctive form, of the countries in `find`.
    National,
    /// Numbers of payment cards.
    Card,
    /// International bank account numbers.
    Iban,
    /// Internet addresses (IPv4 and IPv6).
    Ip,
    /// Names of people, from a list.
    Name,
    /// Dates.
    Date,
    /// Numbers of medical records.
    MedicalRecord,
}

impl PersonalDataKind {
    /// All kinds.
    pub const ALL: [PersonalDataKind; 9] = [
        PersonalDataKind::Email,
        PersonalDataKind::Phone,
        PersonalDataKind::National,
        PersonalDataKind::Card,
        PersonalDataKind::Iban,
        PersonalDataKind::Ip,
        PersonalDataKind::Name,
        PersonalDataKind::Date,
        PersonalDataKind::MedicalRecord,
    ];

    /// Returns the name used in commands and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
            Self::National => "national",
            Self::Card => "card",
            Self::Iban => "iban",
            Self::Ip => "ip",
            Self::Name => "name",
            Self::Date => "date",
            Self::MedicalRecord => "medical_record",
        }
    }

    /// Returns the kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// Returns the word used in pseudonyms.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Email => "EMAIL",
            Self::Phone => "PHONE",
            Self::National => "NATIONAL-NUMBER",
            Self::Card => "CARD",
            Self::Iban => "IBAN",
            Self::Ip => "IP-ADDRESS",
            Self::Name => "NAME",
            Self::Date => "DATE",
            Self::MedicalRecord => "MEDICAL-RECORD",
        }
    }
}
