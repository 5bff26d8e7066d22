//! A terminal to run a program on.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::eventually;

/// The end of a pseudoterminal where a person would sit.
pub struct Terminal {
    main: File,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// A terminal of that size, and its other end as a program's input and output.
    pub fn open(rows: u16, columns: u16) -> (Self, Stdio, Stdio) {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let path = ptsname(&main, Vec::new()).unwrap().into_string().unwrap();
        let end = File::options().read(true).write(true).open(path).unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let terminal = Self { main: main.into(), shown: shown.clone() };
        terminal.resize(rows, columns);
        let mut reader = terminal.main.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reading fails when the program has closed its end.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                shown.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        (terminal, end.try_clone().unwrap().into(), end.into())
    }

    /// Changes the size. The program is not told: SIGWINCH comes only from a controlling terminal.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.main, size).unwrap();
    }

    /// What the terminal does with what is typed.
    pub fn modes(&self) -> LocalModes {
        tcgetattr(&self.main).unwrap().local_modes
    }

    /// Types.
    pub fn type_keys(&mut self, keys: &str) {
        self.main.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` has been shown, and gives everything that has been.
    pub fn wait_for(&self, text: &str) -> String {
        eventually(&format!("{text:?} on the terminal, which shows {:?}", self.text()), || {
            Some(self.text()).filter(|shown| shown.contains(text))
        })
    }

    /// Waits until `text` stands on the screen of a program that draws one.
    pub fn wait_for_on_screen(&self, text: &str) {
        eventually(&format!("{text:?} on the screen:\n{}", self.screen()), || {
            self.screen().contains(text).then_some(())
        });
    }

    /// The screen as it stands after everything that has been shown: of its control sequences (ECMA-48) only those that
    /// move the cursor to a place (CUP) and clear the screen (ED) mean something here.
    pub fn screen(&self) -> String {
        let mut lines: Vec<Vec<char>> = Vec::new();
        let (mut row, mut column) = (0, 0);
        let text = self.text();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            if letter != '\x1b' {
                lines.resize(lines.len().max(row + 1), Vec::new());
                let length = lines[row].len().max(column + 1);
                lines[row].resize(length, ' ');
                lines[row][column] = letter;
                column += 1;
                continue;
            }
            let mut parameters = String::new();
            let end = letters.find(|&letter| {
                parameters.push(letter);
                letter.is_ascii_alphabetic()
            });
            match (end, parameters.trim_matches(['[', 'H']).split_once(';')) {
                (Some('H'), Some((line, cell))) => {
                    (row, column) = (line.parse::<usize>().unwrap() - 1, cell.parse::<usize>().unwrap() - 1);
                }
                (Some('J'), _) => lines.clear(),
                _ => {}
            }
        }
        lines.into_iter().map(|line| line.into_iter().collect::<String>() + "\n").collect()
    }

    /// Everything that has been shown.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }
}
