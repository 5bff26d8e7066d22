//! The bounds of version 1. A length is compared with its bound before a byte of what it announces is kept.

use std::time::Duration;

/// The longest head of a request or a response, in bytes of frame payload.
///
/// Real clients send 1 to 20 KiB (an OIDC token with many groups); the bound leaves room and still caps what one stream
/// can make its peer hold before anything is known of it.
pub const MAX_HEAD_LENGTH: usize = 128 * 1024;

/// The longest control message, trailer section or failure, in bytes of frame payload.
pub const MAX_MESSAGE_LENGTH: usize = 64 * 1024;

/// The longest DATA frame, in bytes. DATA is handed on as it arrives, so this bounds no memory; it keeps a peer from
/// announcing lengths that nobody could have meant.
pub const MAX_DATA_LENGTH: usize = 16 * 1024 * 1024;

/// The longest frame of an unknown type that is skipped, in bytes. Nothing of it is kept.
pub const MAX_SKIPPED_LENGTH: usize = 64 * 1024;

/// The longest reason of a CLOSE record, in bytes. What is longer is cut by the writer.
pub const MAX_REASON_LENGTH: usize = 1000;

/// How many bytes of each direction of a stream over TCP may be sent before the first CREDIT record: as many as yamux's own
/// window holds.
pub const INITIAL_CREDIT: u64 = 256 * 1024;

/// The most header fields in one head or trailer section.
pub const MAX_HEADER_COUNT: usize = 512;

/// The most groups, and the most extra entries, in one identity.
pub const MAX_IDENTITY_ENTRIES: usize = 1024;

/// The most certificates in one chain, and the most stub addresses in one welcome.
pub const MAX_LIST_ENTRIES: usize = 64;

/// The longest audit id, in bytes. The API server itself shows no more of it in its log
/// (`apiserver/pkg/audit/context.go`, `GetAuditIDTruncated`).
pub const MAX_AUDIT_ID_LENGTH: usize = 64;

/// The shortest interval between reports that a stub may ask for.
pub const MIN_REPORT_INTERVAL: Duration = Duration::from_millis(10);

/// The longest interval between reports that a stub may ask for.
pub const MAX_REPORT_INTERVAL: Duration = Duration::from_secs(3600);

/// The longest name of an API server in a report, in bytes.
pub const MAX_API_SERVER_LENGTH: usize = 64;
