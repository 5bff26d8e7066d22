//! What passes the stub's device, written to a file that Wireshark reads.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// The start of each packet that is kept: all headers. What follows is encrypted anyway.
const SNAP_LENGTH: usize = 256;

/// Packets that may wait for the disk; more are left out of the file rather than making the emulator late.
const WAITING: usize = 65_536;

/// Packets begin with an IP header (`LINKTYPE_RAW`).
const LINK_TYPE: u32 = 101;

/// With times in nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;

/// Writes packets on a thread of its own. Dropping it completes the file.
#[derive(Debug)]
pub(super) struct Capture {
    packets: Option<SyncSender<Record>>,
    thread: Option<JoinHandle<()>>,
}

struct Record {
    time: SystemTime,
    length: usize,
    start: Vec<u8>,
}

impl Capture {
    /// Replaces the file.
    pub(super) fn start(file: &Path) -> io::Result<Self> {
        let mut writer = BufWriter::new(File::create(file)?);
        writer.write_all(&file_header())?;
        let (packets, received) = sync_channel(WAITING);
        let name = file.display().to_string();
        let thread = std::thread::Builder::new().name("capture".to_owned()).spawn(move || {
            if let Err(error) = write_all(writer, &received) {
                eprintln!("cannot write {name}: {error}");
            }
        })?;
        Ok(Self { packets: Some(packets), thread: Some(thread) })
    }

    /// Notes a packet that passes now. Never blocks.
    pub(super) fn packet(&self, bytes: &[u8]) {
        let start = bytes.get(..SNAP_LENGTH).unwrap_or(bytes).to_vec();
        if let Some(packets) = &self.packets {
            // See `WAITING`.
            let _ = packets.try_send(Record { time: SystemTime::now(), length: bytes.len(), start });
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.packets.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

fn write_all(mut writer: BufWriter<File>, packets: &Receiver<Record>) -> io::Result<()> {
    for packet in packets {
        writer.write_all(&packet.header())?;
        writer.write_all(&packet.start)?;
    }
    writer.flush()
}

/// `pcap_file_header` (draft-ietf-opsawg-pcap, section 4), version 2.4.
fn file_header() -> Vec<u8> {
    let version = 2u32 | 4 << 16;
    words([MAGIC, version, 0, 0, SNAP_LENGTH as u32, LINK_TYPE])
}

impl Record {
    /// The packet's own header (draft-ietf-opsawg-pcap, section 5).
    fn header(&self) -> Vec<u8> {
        let time = self.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        words([time.as_secs() as u32, time.subsec_nanos(), self.start.len() as u32, self.length as u32])
    }
}

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_packet_is_cut_and_its_length_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("packets.pcap");
        let capture = Capture::start(&file).unwrap();
        capture.packet(&[0x45; 1500]);
        capture.packet(&[0x45; 40]);
        drop(capture);
        let bytes = std::fs::read(file).unwrap();
        let word = |offset: usize| u32::from_le_bytes(*bytes[offset..].first_chunk().unwrap());
        assert_eq!((word(0), word(20)), (0xa1b2_3c4d, 101));
        assert_eq!((word(24 + 8), word(24 + 12)), (256, 1500));
        let second = 24 + 16 + 256;
        assert_eq!((word(second + 8), word(second + 12)), (40, 40));
        assert_eq!(bytes.len(), second + 16 + 40);
    }
}
