//! The quantities a profile speaks of, each read from the text people write: `25ms`, `300mbit`, `2%`, `64KiB`.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// How fast a link sends, in bits per second; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

/// A share of packets, from 0 (none) to 1 (all).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Probability(f64);

/// A span of time, written with its unit (`ns`, `us`, `ms` or `s`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span(pub Duration);

/// A number of bytes: plain, or with `kB`, `MB` (powers of 1000), `KiB` or `MiB` (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub usize);

/// A text that is not the quantity it should be.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct UnitError {
    text: String,
    expected: &'static str,
}

impl Rate {
    /// `None` when `bits_per_second` is zero: a link that sends nothing is a blackout, not a rate.
    pub fn new(bits_per_second: u64) -> Option<Self> {
        NonZeroU64::new(bits_per_second).map(Self)
    }

    /// Bits per second.
    pub fn bits_per_second(self) -> u64 {
        self.0.get()
    }

    /// How long `bytes` take to be sent, rounded up to a whole nanosecond so that the rate is never exceeded.
    pub fn time_to_send(self, bytes: usize) -> Duration {
        let bits = bytes as u128 * 8;
        let nanos = (bits * 1_000_000_000).div_ceil(u128::from(self.0.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Probability {
    /// Nothing is ever hit.
    pub const NEVER: Self = Self(0.0);

    /// `None` when `share` is not between 0 and 1.
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// Between 0 and 1.
    pub fn share(self) -> f64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let units = [("bit", 1.0), ("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)];
        scaled(text, &units)
            .and_then(|bits| Self::new(bits as u64))
            .ok_or_else(|| UnitError::new(text, "a rate above zero such as `500kbit`, `10mbit` or `1gbit`"))
    }
}

impl FromStr for Probability {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, &[("%", 0.01)])
            .and_then(Self::new)
            .ok_or_else(|| UnitError::new(text, "a share between `0%` and `100%`"))
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, &[("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)])
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .map(Self)
            .ok_or_else(|| UnitError::new(text, "a time such as `500us`, `25ms` or `5s`"))
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let units = [("", 1.0), ("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("KiB", 1024.0), ("MiB", 1024.0 * 1024.0)];
        scaled(text, &units)
            .map(|bytes| Self(bytes as usize))
            .ok_or_else(|| UnitError::new(text, "a size such as `1500`, `64KiB` or `2MB`"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits_per_second();
        match bits {
            0..1_000 => write!(f, "{bits}bit"),
            1_000..1_000_000 => write!(f, "{}kbit", bits as f64 / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{}mbit", bits as f64 / 1e6),
            _ => write!(f, "{}gbit", bits as f64 / 1e9),
        }
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Four decimals hide what binary fractions do to 0.07 * 100.
        write!(f, "{}%", (self.0 * 1e6).round() / 1e4)
    }
}

impl UnitError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.to_owned(), expected }
    }
}

/// The number at the start of `text`, times the factor of the unit that is the rest of it.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    Some(number.parse::<f64>().ok()? * factor)
}

/// In a profile every quantity is a string, so that none is without its unit.
macro_rules! deserialize_from_text {
    ($($quantity:ty),*) => {$(
        impl<'de> Deserialize<'de> for $quantity {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
deserialize_from_text!(Rate, Probability, Span, Size);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_people_write_them() {
        assert_eq!("10mbit".parse::<Rate>().unwrap().bits_per_second(), 10_000_000);
        assert_eq!("1.5 gbit".parse::<Rate>().unwrap().bits_per_second(), 1_500_000_000);
        assert_eq!("2%".parse::<Probability>().unwrap().share(), 0.02);
        assert_eq!("25ms".parse::<Span>().unwrap().0, Duration::from_millis(25));
        assert_eq!("64KiB".parse::<Size>().unwrap().0, 65_536);
        assert_eq!("1500".parse::<Size>().unwrap().0, 1_500);
    }

    #[test]
    fn a_quantity_without_its_unit_or_out_of_bounds_is_refused() {
        for text in ["", "10", "0mbit", "-1mbit", "mbit", "1tbit"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for text in ["2", "101%", "-1%", "%", "NaN%"] {
            assert!(text.parse::<Probability>().is_err(), "{text}");
        }
        for text in ["5", "5 m", "1e400s", "99999999999999999999s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_what_was_read() {
        for text in ["10mbit", "1.5gbit", "256kbit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["0.07%", "2%", "100%"] {
            assert_eq!(text.parse::<Probability>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn sending_time_is_rounded_up() {
        assert_eq!(Rate::new(3).unwrap().time_to_send(1), Duration::from_nanos(2_666_666_667));
    }
}
