//! `tar`, for `kubectl cp`: archives in the ustar format (POSIX.1-1988), long names by GNU and pax headers.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::complain;
use crate::demo::api::{
    files::{NoSpace, Node, normalize},
    pods::Container,
    process::{BrokenPipe, Io},
};

const BLOCK: usize = 512;
/// The largest file and the longest name taken from an archive.
const MAX_FILE: u64 = 256 * 1024 * 1024;
const MAX_NAME: u64 = 4096;

/// Creates an archive on standard output, or extracts one from standard input.
pub(super) async fn run(container: &Arc<Container>, folder: &str, arguments: &[String], io: &mut Io<'_>) -> u8 {
    match Arguments::parse(folder, arguments) {
        Some(Arguments { create: true, folder, paths }) => create(container, &folder, &paths, io).await,
        Some(Arguments { create: false, folder, .. }) => {
            let (container, mut archive) = (container.clone(), Archive::default());
            match archive.extract(&container, &folder, io).await {
                Ok(()) => 0,
                Err(why) => complain(io, &format!("tar: {why}")).await,
            }
        }
        None => complain(io, "tar: use tar cf - PATH... or tar xf - [-C FOLDER]").await,
    }
}

struct Arguments {
    create: bool,
    folder: String,
    paths: Vec<String>,
}

impl Arguments {
    /// As kubectl asks: `tar cf - PATH`, `tar -xmf - -C FOLDER`.
    fn parse(folder: &str, arguments: &[String]) -> Option<Self> {
        let (flags, rest) = arguments.split_first()?;
        let flags = flags.trim_start_matches('-');
        let create = flags.contains('c');
        if create == flags.contains('x') || !flags.chars().all(|flag| "cxfmpvo".contains(flag)) {
            return None;
        }
        let mut rest = rest.iter().map(String::as_str);
        if flags.contains('f') && rest.next() != Some("-") {
            return None;
        }
        let mut parsed = Self { create, folder: folder.to_owned(), paths: Vec::new() };
        while let Some(word) = rest.next() {
            match word {
                "-C" => parsed.folder = normalize(folder, rest.next()?),
                option if option.starts_with("--") => {}
                path => parsed.paths.push(path.to_owned()),
            }
        }
        Some(parsed)
    }
}

async fn create(container: &Container, folder: &str, paths: &[String], io: &Io<'_>) -> u8 {
    let mut warned = false;
    for path in paths {
        let full = normalize(folder, path);
        let entries: Vec<(String, Node, i64)> = {
            let files = container.files();
            files.tree(&full).map(|(path, entry)| (path.to_owned(), entry.node.clone(), entry.modified)).collect()
        };
        if entries.is_empty() {
            return complain(io, &format!("tar: {path}: No such file or directory")).await;
        }
        let absolute = path.starts_with('/');
        if absolute && !warned {
            warned = true;
            complain(io, "tar: removing leading '/' from member names").await;
        }
        for (entry, node, modified) in entries {
            // Every entry lies at or below `full`.
            let below = entry.strip_prefix(&full).unwrap_or_default();
            let name = if absolute { entry.trim_start_matches('/').to_owned() } else { format!("{path}{below}") };
            if write_entry(&name, &node, modified, io).await.is_err() {
                return 1;
            }
        }
    }
    // Two empty blocks are the end.
    u8::from(io.stdout.write(Bytes::from_static(&[0; 2 * BLOCK])).await.is_err())
}

async fn write_entry(name: &str, node: &Node, modified: i64, io: &Io<'_>) -> Result<(), BrokenPipe> {
    let (kind, content, name) = match node {
        Node::Folder => (b'5', Bytes::new(), format!("{name}/")),
        Node::File(content) => (b'0', content.clone(), name.to_owned()),
    };
    if name.len() > 100 {
        let long = Bytes::from(format!("{name}\0"));
        write_block("././@LongLink", b'L', &long, modified, io).await?;
    }
    write_block(&name, kind, &content, modified, io).await
}

async fn write_block(name: &str, kind: u8, content: &Bytes, modified: i64, io: &Io<'_>) -> Result<(), BrokenPipe> {
    io.stdout.write(Bytes::copy_from_slice(&header(name, kind, content.len(), modified))).await?;
    io.stdout.write(content.clone()).await?;
    let padding = content.len().next_multiple_of(BLOCK) - content.len();
    io.stdout.write(vec![0; padding]).await
}

fn header(name: &str, kind: u8, size: usize, modified: i64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    // Field offsets of the ustar format; each text is shorter than its field.
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, if kind == b'5' { b"0000755\0" } else { b"0000644\0" });
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", size & 0o77_777_777_777).as_bytes());
    put(136, format!("{:011o}\0", modified.max(0) & 0o77_777_777_777).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000root\0");
    put(297, b"root\0");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// An archive as it arrives.
#[derive(Default)]
struct Archive {
    arrived: BytesMut,
    long_name: Option<String>,
}

impl Archive {
    async fn extract(&mut self, container: &Container, folder: &str, io: &mut Io<'_>) -> Result<(), String> {
        while let Some(header) = self.take(BLOCK, io).await {
            if header.iter().all(|&byte| byte == 0) {
                // Whoever writes the archive may still pad it.
                while io.stdin.piece().await.is_some() {}
                return Ok(());
            }
            let (name, kind) = (text_field(&header, 0, 100), header[156]);
            let prefix = text_field(&header, 345, 155);
            let size = octal_field(&header, 124, 12).filter(|size| *size <= MAX_FILE).ok_or("a file is too large")?;
            let modified = octal_field(&header, 136, 12).unwrap_or(0).cast_signed();
            let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if matches!(kind, b'L' | b'x' | b'g') && size > MAX_NAME {
                return Err("a name is too long".to_owned());
            }
            // At most MAX_FILE.
            let content = self.take_padded(size as usize, io).await.ok_or("short read")?;
            let name = self.long_name.take().unwrap_or(name);
            match kind {
                b'L' => self.long_name = Some(String::from_utf8_lossy(&content).trim_end_matches('\0').to_owned()),
                b'x' => self.long_name = pax_path(&content),
                b'5' => put(container, folder, &name, Node::Folder, modified)?,
                b'0' | 0 => put(container, folder, &name, Node::File(content), modified)?,
                _ => {}
            }
        }
        if self.arrived.is_empty() { Ok(()) } else { Err("short read".to_owned()) }
    }

    async fn take_padded(&mut self, size: usize, io: &mut Io<'_>) -> Option<Bytes> {
        let mut content = self.take(size.next_multiple_of(BLOCK), io).await?;
        content.truncate(size);
        Some(content)
    }

    async fn take(&mut self, size: usize, io: &mut Io<'_>) -> Option<Bytes> {
        while self.arrived.len() < size {
            let piece = io.stdin.piece().await?;
            self.arrived.extend_from_slice(&piece);
        }
        Some(self.arrived.split_to(size).freeze())
    }
}

fn put(container: &Container, folder: &str, name: &str, node: Node, modified: i64) -> Result<(), String> {
    // Whatever the name says, it stays within the container's own files.
    let path = normalize(folder, name.trim_start_matches('/'));
    container.files().put(&path, node, modified).map_err(|NoSpace| format!("{name}: No space left on device"))
}

fn text_field(block: &[u8], at: usize, length: usize) -> String {
    let field = block.get(at..at + length).unwrap_or_default();
    String::from_utf8_lossy(field.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

fn octal_field(block: &[u8], at: usize, length: usize) -> Option<u64> {
    u64::from_str_radix(text_field(block, at, length).trim(), 8).ok()
}

/// The `path` record of a pax header: `LENGTH KEY=VALUE\n`.
fn pax_path(mut records: &[u8]) -> Option<String> {
    while !records.is_empty() {
        let space = records.iter().position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..length.checked_sub(1)?)?;
        if let Some(path) = record.strip_prefix(b"path=") {
            return Some(String::from_utf8_lossy(path).into_owned());
        }
        records = records.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_header_names_a_file() {
        assert_eq!(pax_path(b"12 mtime=1.5\n17 path=long/name\n"), None);
        assert_eq!(pax_path(b"13 mtime=1.5\n18 path=long/name\n"), Some("long/name".to_owned()));
        assert_eq!(pax_path(b"999 path=x\n"), None);
    }

    #[test]
    fn a_header_carries_its_checksum() {
        let header = header("tmp/a", b'0', 5, 1);
        let sum: u32 = header[..148].iter().chain(b"        ").chain(&header[156..]).map(|&b| u32::from(b)).sum();
        assert_eq!(octal_field(&header, 148, 7), Some(u64::from(sum)));
        assert_eq!(octal_field(&header, 124, 12), Some(5));
    }
}
