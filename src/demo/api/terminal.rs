//! What a terminal does with what is typed (`n_tty`): echo, editing of one line, Ctrl-C and Ctrl-D.

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use super::process::Output;

const INTERRUPT: u8 = 0x03;
const END_OF_INPUT: u8 = 0x04;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;
const ESCAPE: u8 = 0x1b;
/// The longest line that can be typed, as of a real terminal.
const MAX_LINE: usize = 4096;

/// Turns what is typed into lines, until the input ends or nobody reads it.
pub(super) async fn discipline(
    mut typed: mpsc::Receiver<Bytes>,
    lines: mpsc::Sender<Bytes>,
    echo: Output,
    interrupt: &Notify,
) {
    let mut line = Vec::new();
    while let Some(piece) = typed.recv().await {
        let mut echoed = Vec::new();
        for &byte in &piece {
            let finished = type_byte(byte, &mut line, &mut echoed, interrupt);
            // A process that does not read its input does not keep Ctrl-C from arriving.
            if let Some(finished) = finished
                && lines.try_send(finished).is_err()
                && lines.is_closed()
            {
                return;
            }
        }
        if echo.write(echoed).await.is_err() {
            return;
        }
    }
}

/// One byte typed; the line or end of input it finishes.
fn type_byte(byte: u8, line: &mut Vec<u8>, echoed: &mut Vec<u8>, interrupt: &Notify) -> Option<Bytes> {
    match byte {
        b'\r' | b'\n' => {
            echoed.extend_from_slice(b"\r\n");
            line.push(b'\n');
            return Some(std::mem::take(line).into());
        }
        INTERRUPT => {
            line.clear();
            echoed.extend_from_slice(b"^C");
            interrupt.notify_one();
        }
        END_OF_INPUT => return Some(std::mem::take(line).into()),
        BACKSPACE | DELETE if line.pop().is_some() => echoed.extend_from_slice(b"\x08 \x08"),
        BACKSPACE | DELETE => {}
        ESCAPE => echoed.extend_from_slice(b"^["),
        _ if line.len() < MAX_LINE => {
            line.push(byte);
            echoed.push(byte);
        }
        _ => {}
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> (Vec<Bytes>, Vec<u8>) {
        let (mut line, mut echoed, interrupt) = (Vec::new(), Vec::new(), Notify::new());
        let lines = keys.iter().filter_map(|&key| type_byte(key, &mut line, &mut echoed, &interrupt)).collect();
        (lines, echoed)
    }

    #[test]
    fn a_typed_line_is_echoed_and_can_be_corrected() {
        let (lines, echoed) = typed(b"lx\x7fs\r");
        assert_eq!(lines, ["ls\n"]);
        assert_eq!(echoed, b"lx\x08 \x08s\r\n");
    }

    #[test]
    fn ctrl_c_gives_up_the_line_and_ctrl_d_ends_the_input() {
        let (lines, echoed) = typed(b"abc\x03\x04");
        assert_eq!(lines, [Bytes::new()]);
        assert_eq!(echoed, b"abc^C");
    }
}
