//! How sessions look in their file: a header and then records, each in a place of [`PLACE`] bytes.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};

use super::{Session, SessionId};
use crate::pki::CertificateFingerprint;

/// Bytes of one place. The header has the first. Places do not cross pages of memory, so the death of a process never leaves
/// half a record.
pub const PLACE: usize = 2048;

/// What a file of sessions begins with.
const MAGIC: &[u8; 16] = b"qtunnel sessions";

/// Bytes of a record's checksum.
const CHECKSUM: usize = 16;

/// What a file of sessions is good for. One that says anything else than it should has been copied, is older than the last
/// boot, or belongs to other authorities: the sessions in it may have been given out, or ought not to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The boot of the system that wrote it. Within one boot nothing that a process has written is lost when it dies; when the
    /// system itself goes down, the last writes may be.
    pub boot: String,
    /// Device and number of the very file: a copy has other ones.
    pub file: (u64, u64),
    /// The authorities that agents and stub prove themselves by.
    pub authorities: [CertificateFingerprint; 2],
}

impl Header {
    /// The bytes of the first place.
    pub fn encode(&self) -> Vec<u8> {
        let (device, number) = self.file;
        let [device, number] = [device, number].map(u64::to_be_bytes);
        let [agents, servers] = self.authorities.each_ref().map(CertificateFingerprint::as_bytes);
        let parts: [&[u8]; 6] = [MAGIC, &device, &number, agents, servers, self.boot.as_bytes()];
        let mut bytes = parts.concat();
        bytes.resize(PLACE, 0);
        bytes
    }

    /// Whether `bytes` are the beginning of a file of sessions, whatever it is good for.
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }
}

/// The bytes of a session's place; `None` for one that is too long.
pub fn encode(id: &SessionId, session: &Session) -> Option<Vec<u8>> {
    let expires = session.expires.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let agent = session.agent.to_string();
    let lengths = [u16::try_from(agent.len()).ok()?, u16::try_from(session.secret.len()).ok()?];
    let [agent_length, secret_length] = lengths.map(u16::to_be_bytes);
    let parts: [&[u8]; 6] =
        [&expires.to_be_bytes(), id.as_bytes(), &agent_length, &secret_length, agent.as_bytes(), &session.secret];
    let content = parts.concat();
    let mut bytes = [&checksum(&content), content.as_slice()].concat();
    if bytes.len() > PLACE {
        return None;
    }
    bytes.resize(PLACE, 0);
    Some(bytes)
}

/// Reads a place; `None` when there is no session in it, or what is there is damaged.
pub fn decode(bytes: &[u8]) -> Option<(SessionId, Session)> {
    let (sum, content) = bytes.split_at_checked(CHECKSUM)?;
    let (expires, rest) = content.split_first_chunk::<8>()?;
    let (id, rest) = rest.split_first_chunk::<{ SessionId::LENGTH }>()?;
    let (agent_length, rest) = rest.split_first_chunk::<2>()?;
    let (secret_length, rest) = rest.split_first_chunk::<2>()?;
    let (agent, rest) = rest.split_at_checked(u16::from_be_bytes(*agent_length).into())?;
    let (secret, padding) = rest.split_at_checked(u16::from_be_bytes(*secret_length).into())?;
    let content = content.get(..content.len() - padding.len())?;
    if checksum(content) != sum {
        return None;
    }
    let session = Session {
        agent: std::str::from_utf8(agent).ok()?.parse().ok()?,
        expires: SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(*expires)))?,
        secret: secret.to_vec(),
    };
    Some((SessionId::new(*id), session))
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.iter_mut().zip(digest(&SHA256, content).as_ref()).for_each(|(to, from)| *to = *from);
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(secret: Vec<u8>) -> Session {
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Session { agent: "qtunnel://prod/agent/a1".parse().unwrap(), expires, secret }
    }

    const ID: SessionId = SessionId([7; 32]);

    #[test]
    fn a_session_comes_back_as_it_was() {
        let bytes = encode(&ID, &session(vec![9; 900])).unwrap();
        assert_eq!(bytes.len(), PLACE);
        assert_eq!(decode(&bytes), Some((ID, session(vec![9; 900]))));
    }

    #[test]
    fn a_session_that_does_not_fit_its_place_is_refused() {
        assert!(encode(&ID, &session(vec![9; PLACE])).is_none());
        assert!(encode(&ID, &session(vec![9; 70_000])).is_none());
    }

    #[test]
    fn an_empty_place_holds_no_session() {
        assert_eq!(decode(&[0; PLACE]), None);
        assert_eq!(decode(&[]), None);
    }

    proptest! {
        #[test]
        fn a_damaged_place_holds_no_session(position in 0..983_usize, bit in 0..8_u8) {
            let mut bytes = encode(&ID, &session(vec![9; 900])).unwrap();
            bytes[position] ^= 1 << bit;
            prop_assert_eq!(decode(&bytes), None);
        }

        #[test]
        fn garbage_is_no_session(bytes in prop::collection::vec(any::<u8>(), 0..PLACE)) {
            prop_assert_eq!(decode(&bytes), None);
        }
    }
}
