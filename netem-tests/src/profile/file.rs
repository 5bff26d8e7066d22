//! The form of a profile file, and how it becomes profiles.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::{Action, DEFAULT_MTU, Event, Profile, ProfileError};
use crate::link::{Bursts, Loss, PathSettings, QueueLimit};
use crate::units::{Probability, Rate, Size, Span};

/// IPv6 needs no less (RFC 8200, section 5), and QUIC's first packets of 1200 bytes fit in it.
const SMALLEST_MTU: usize = 1280;

/// Reads all profiles of a file; `file` is only named in errors.
pub(super) fn parse(file: &Path, text: &str) -> Result<BTreeMap<String, Profile>, ProfileError> {
    let tables: BTreeMap<String, ProfileTable> = toml::from_str(text)
        .map_err(|error| ProfileError::Syntax { file: file.to_owned(), reason: error.to_string() })?;
    tables
        .into_iter()
        .map(|(name, table)| {
            let profile = table.into_profile(&name);
            let profile = profile.map_err(|reason| ProfileError::Meaning { name: name.clone(), reason })?;
            Ok((name, profile))
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileTable {
    about: String,
    #[serde(default)]
    both: PathTable,
    #[serde(default)]
    up: PathTable,
    #[serde(default)]
    down: PathTable,
    mtu: Option<usize>,
    #[serde(default)]
    udp_blocked: bool,
    #[serde(default)]
    events: Vec<EventTable>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(deny_unknown_fields)]
struct PathTable {
    delay: Option<Span>,
    jitter: Option<Span>,
    reorder: Option<bool>,
    rate: Option<Rate>,
    queue: Option<QueueTable>,
    loss: Option<LossValue>,
    duplicate: Option<Probability>,
    corrupt: Option<Probability>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
struct QueueTable {
    packets: Option<usize>,
    bytes: Option<Size>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BurstsTable {
    enter: Probability,
    leave: Probability,
    loss: Probability,
    #[serde(default)]
    loss_between: Probability,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventTable {
    at: Span,
    what: EventName,
    lasts: Option<Span>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EventName {
    Blackout,
    NatRebind,
    AddressChange,
}

impl ProfileTable {
    fn into_profile(self, name: &str) -> Result<Profile, &'static str> {
        let mtu = self.mtu.unwrap_or(DEFAULT_MTU);
        if !(SMALLEST_MTU..=usize::from(u16::MAX)).contains(&mtu) {
            return Err("`mtu` must be between 1280 and 65535");
        }
        let mut events = self.events.into_iter().map(EventTable::into_event).collect::<Result<Vec<_>, _>>()?;
        events.sort_by_key(|event| event.at);
        Ok(Profile {
            name: name.to_owned(),
            about: self.about,
            up: self.up.or(&self.both).into_settings()?,
            down: self.down.or(&self.both).into_settings()?,
            mtu,
            udp_blocked: self.udp_blocked,
            events,
        })
    }
}

impl PathTable {
    /// These keys, and those of `other` that are not among them.
    fn or(self, other: &Self) -> Self {
        Self {
            delay: self.delay.or(other.delay),
            jitter: self.jitter.or(other.jitter),
            reorder: self.reorder.or(other.reorder),
            rate: self.rate.or(other.rate),
            queue: self.queue.or(other.queue),
            loss: self.loss.or(other.loss),
            duplicate: self.duplicate.or(other.duplicate),
            corrupt: self.corrupt.or(other.corrupt),
        }
    }

    fn into_settings(self) -> Result<PathSettings, &'static str> {
        let delay = self.delay.unwrap_or_default().0;
        let jitter = self.jitter.unwrap_or_default().0;
        if jitter > delay {
            return Err("`jitter` must not exceed `delay`: no packet arrives before it was sent");
        }
        let unset = QueueLimit::default();
        let queue = self.queue.map_or(unset, |queue| QueueLimit {
            packets: queue.packets.unwrap_or(unset.packets),
            bytes: queue.bytes.map_or(unset.bytes, |size| size.0),
        });
        Ok(PathSettings {
            corrupt: self.corrupt.unwrap_or_default(),
            loss: self.loss.map(|value| value.0).unwrap_or_default(),
            duplicate: self.duplicate.unwrap_or_default(),
            queue,
            rate: self.rate,
            delay,
            jitter,
            reorder: self.reorder.unwrap_or_default(),
        })
    }
}

impl EventTable {
    fn into_event(self) -> Result<Event, &'static str> {
        let action = match (self.what, self.lasts) {
            (EventName::Blackout, Some(lasts)) => Action::Blackout(lasts.0),
            (EventName::Blackout, None) => return Err("a blackout needs `lasts`"),
            (_, Some(_)) => return Err("only a blackout has `lasts`"),
            (EventName::NatRebind, None) => Action::NatRebind,
            (EventName::AddressChange, None) => Action::AddressChange,
        };
        Ok(Event { at: self.at.0, action })
    }
}

/// Loss as a share or as a table. Told apart by hand: serde's untagged enums would hide what is wrong with either.
#[derive(Clone, Copy)]
struct LossValue(Loss);

impl<'de> Deserialize<'de> for LossValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LossVisitor)
    }
}

struct LossVisitor;

impl<'de> Visitor<'de> for LossVisitor {
    type Value = LossValue;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a share such as \"2%\", or a table with `enter`, `leave` and `loss`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<LossValue, E> {
        text.parse().map(|share| LossValue(Loss::Independent(share))).map_err(E::custom)
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<LossValue, M::Error> {
        let table = BurstsTable::deserialize(MapAccessDeserializer::new(map))?;
        Ok(LossValue(Loss::Bursts(Bursts {
            enter: table.enter,
            leave: table.leave,
            loss: table.loss,
            loss_between: table.loss_between,
        })))
    }
}
