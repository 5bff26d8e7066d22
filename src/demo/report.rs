//! How checks are printed while they are made.

use std::io::Write;
use std::time::Duration;

/// Prints checks, each as it ends.
pub struct Report<W> {
    out: W,
    style: Style,
}

/// What the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A file or a pipe: finished lines only.
    Plain,
    /// A terminal: a check that runs has a line, which its result replaces.
    Terminal {
        /// Whether to use colours.
        colours: bool,
    },
}

#[derive(Clone, Copy)]
enum Colour {
    Green = 32,
    Yellow = 33,
    Red = 31,
    Dim = 2,
}

/// Back to the first column, and clear what stands there (ECMA-48: CR, EL).
const CLEAR_LINE: &str = "\r\x1b[K";

const NAME_WIDTH: usize = 18;
const TIME_WIDTH: usize = 11;

impl<W: Write> Report<W> {
    /// Prints to `out`.
    pub fn new(out: W, style: Style) -> Self {
        Self { out, style }
    }

    /// A check runs.
    pub fn running(&mut self, name: &str) {
        if self.style != Style::Plain {
            let mark = self.coloured("…", Colour::Dim);
            self.write(&format!("  {mark} {name}"));
        }
    }

    /// It passed, and what took so long.
    pub fn passed(&mut self, name: &str, time: Duration, detail: &str) {
        let mark = self.coloured("✓", Colour::Green);
        let detail = self.coloured(detail, Colour::Dim);
        self.replace(&format!("  {mark} {name:NAME_WIDTH$}{:>TIME_WIDTH$}  {detail}", in_words(time)));
    }

    /// It could not be made.
    pub fn skipped(&mut self, name: &str, why: &str) {
        let mark = self.coloured("-", Colour::Yellow);
        self.replace(&format!("  {mark} {name:NAME_WIDTH$}{:TIME_WIDTH$}  skipped: {why}", ""));
    }

    /// It failed, why, and what to do.
    pub fn failed(&mut self, name: &str, why: &str, advice: &str) {
        let mark = self.coloured("✗", Colour::Red);
        let failed = self.coloured("failed:", Colour::Red);
        self.replace(&format!("  {mark} {name:NAME_WIDTH$}{:TIME_WIDTH$}  {failed} {why}", ""));
        self.line(&format!("    {:NAME_WIDTH$}{:TIME_WIDTH$}  {advice}", "", ""));
    }

    /// It will not end; its line is for what is printed next.
    pub fn abandoned(&mut self) {
        if self.style != Style::Plain {
            self.write(CLEAR_LINE);
        }
    }

    /// A line of text.
    pub fn line(&mut self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    fn replace(&mut self, line: &str) {
        self.abandoned();
        self.line(line);
    }

    fn write(&mut self, text: &str) {
        // A reader that has seen enough (`| head`) does not end the demo.
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }

    fn coloured(&self, text: &str, colour: Colour) -> String {
        match self.style {
            Style::Terminal { colours: true } => format!("\x1b[{}m{text}\x1b[0m", colour as u8),
            _ => text.to_owned(),
        }
    }
}

/// A time as people read it: `0.8 ms`, `2.4 s`.
pub fn in_words(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{:.1} ms", time.as_secs_f64() * 1000.0),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(style: Style, print: impl FnOnce(&mut Report<&mut Vec<u8>>)) -> String {
        let mut out = Vec::new();
        print(&mut Report::new(&mut out, style));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_file_gets_finished_lines_only() {
        let text = printed(Style::Plain, |report| {
            report.running("list pods");
            report.passed("list pods", Duration::from_micros(3240), "4 pods");
            report.skipped("exec", "no running pod");
            report.failed("watch", "no event", "look at the log");
        });
        let expected = [
            "  ✓ list pods              3.2 ms  4 pods",
            "  - exec                           skipped: no running pod",
            "  ✗ watch                          failed: no event",
            "                                   look at the log",
            "",
        ];
        assert_eq!(text.split('\n').collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_terminal_shows_what_runs_until_it_ends() {
        let text = printed(Style::Terminal { colours: true }, |report| {
            report.running("watch");
            report.passed("watch", Duration::from_secs(2), "seen");
        });
        assert!(text.starts_with("  \x1b[2m…\x1b[0m watch\r\x1b[K  \x1b[32m✓\x1b[0m watch"), "{text:?}");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(in_words(Duration::from_micros(849)), "0.8 ms");
        assert_eq!(in_words(Duration::from_millis(2449)), "2.4 s");
    }
}
