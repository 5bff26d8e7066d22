//! Header blocks of SPDY/3 (draft 3, section 2.6.10): names and values with their lengths, compressed by one zlib
//! stream per direction that starts from a dictionary.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Largest header block accepted, uncompressed.
const MAX_BLOCK: usize = 64 * 1024;
const STEP: usize = 4096;

/// Headers in order.
pub(in crate::demo) type Headers = Vec<(String, String)>;

/// A header block that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("a SPDY header block is malformed or too large")]
pub(in super::super) struct BadHeaders;

/// Compresses the header blocks of one direction.
pub(super) struct Compressor(Compress);

/// Decompresses the header blocks of one direction.
pub(super) struct Decompressor(Decompress);

impl Compressor {
    pub fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        // A fresh stream takes a dictionary.
        compress.set_dictionary(&DICTIONARY).expect("a fresh zlib stream takes a dictionary");
        Self(compress)
    }

    /// The compressed block, flushed so that it can be read on its own.
    pub fn block(&mut self, headers: &[(String, String)]) -> Vec<u8> {
        let mut plain = length(headers.len()).to_vec();
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend_from_slice(&length(text.len()));
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let start = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - start).unwrap_or(plain.len());
            out.reserve(STEP);
            // Compressing into room that was just made does not fail.
            let status = self.0.compress_vec(&plain[done..], &mut out, FlushCompress::Sync);
            if !matches!(status, Ok(Status::Ok)) || out.len() < out.capacity() {
                return out;
            }
        }
    }
}

impl Decompressor {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of a compressed block.
    pub fn headers(&mut self, compressed: &[u8]) -> Result<Headers, BadHeaders> {
        let start = self.0.total_in();
        let mut plain = Vec::with_capacity(STEP);
        loop {
            let done = usize::try_from(self.0.total_in() - start).map_err(|_| BadHeaders)?;
            let before = plain.len();
            plain.reserve(STEP);
            match self.0.decompress_vec(&compressed[done..], &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(BadHeaders),
                Ok(_) if plain.len() == before => break,
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| BadHeaders)?;
                }
                Err(_) => return Err(BadHeaders),
            }
            if plain.len() > MAX_BLOCK {
                return Err(BadHeaders);
            }
        }
        parse(&plain).ok_or(BadHeaders)
    }
}

fn parse(mut plain: &[u8]) -> Option<Headers> {
    let count = take_length(&mut plain)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = take_text(&mut plain)?;
        headers.push((name, take_text(&mut plain)?));
    }
    plain.is_empty().then_some(headers)
}

fn take_text(plain: &mut &[u8]) -> Option<String> {
    let length = take_length(plain)?;
    let (text, rest) = plain.split_at_checked(length)?;
    *plain = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn take_length(plain: &mut &[u8]) -> Option<usize> {
    let (length, rest) = plain.split_first_chunk::<4>()?;
    *plain = rest;
    usize::try_from(u32::from_be_bytes(*length)).ok()
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// Section 2.6.10.1.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::new();
    for word in DICTIONARY_WORDS.split_ascii_whitespace() {
        let word = word.replace('_', " ");
        dictionary.extend_from_slice(&length(word.len()));
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(DICTIONARY_TAIL.as_bytes());
    dictionary
});

const DICTIONARY_WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base content-encoding \
    content-language content-length content-location content-md5 content-range content-type date etag expect expires \
    from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location \
    max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer \
    transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 \
    url public set-cookie keep-alive origin";

const DICTIONARY_TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502\
    504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 \
    Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun \
    Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,\
    image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn recorded_blocks_of_kubectl_are_read_in_order() {
        let mut decompressor = Decompressor::new();
        let blocks = [
            ("78f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff", "error"),
            ("c22ac5565c92925f5a02000000ffff", "stdout"),
            ("c229975a5404000000ffff", "stderr"),
        ];
        for (block, stream) in blocks {
            let expected = vec![("streamtype".to_owned(), stream.to_owned())];
            assert_eq!(decompressor.headers(&hex(block)).unwrap(), expected);
        }
    }

    #[test]
    fn empty_blocks_are_written_as_the_kubelet_writes_them() {
        let mut compressor = Compressor::new();
        let mut decompressor = Decompressor::new();
        for _ in 0..3 {
            let block = compressor.block(&[]);
            assert!(block.ends_with(b"\0\0\xff\xff"));
            assert_eq!(decompressor.headers(&block).unwrap(), Headers::new());
        }
    }

    #[test]
    fn headers_survive_the_way() {
        let headers = vec![("port".to_owned(), "80".to_owned()), ("requestid".to_owned(), "x".repeat(9000))];
        let block = Compressor::new().block(&headers);
        assert_eq!(Decompressor::new().headers(&block).unwrap(), headers);
    }

    #[test]
    fn a_bomb_and_nonsense_are_refused() {
        let bomb = Compressor::new().block(&[("a".to_owned(), "x".repeat(10 * MAX_BLOCK))]);
        assert!(Decompressor::new().headers(&bomb).is_err());
        assert!(Decompressor::new().headers(b"nonsense").is_err());
    }
}
