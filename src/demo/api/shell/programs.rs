//! The programs, each a small version of what BusyBox has.

use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use jiff::Timestamp;

use super::{Flow, Shell, complain, tar};
use crate::demo::api::{
    files::{Node, normalize},
    process::{Io, PIECE},
};

const PROGRAMS: &[&str] = &[
    "[",
    "cat",
    "cd",
    "date",
    "echo",
    "env",
    "exit",
    "false",
    "head",
    "hostname",
    "ls",
    "mkdir",
    "pwd",
    "rm",
    "sh",
    "sha256sum",
    "sleep",
    "stty",
    "tar",
    "test",
    "true",
    "tty",
    "wc",
];

static ZEROS: [u8; PIECE] = [0; PIECE];

/// Whether there is such a program, by its name or in one of the usual folders.
pub(super) fn exists(program: &str) -> bool {
    let usual = match program.rsplit_once('/') {
        Some((folder, _)) => matches!(folder, "/bin" | "/usr/bin"),
        None => true,
    };
    usual && PROGRAMS.contains(&base_name(program))
}

/// The last part of a path.
pub(super) fn base_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

impl Shell {
    /// Runs a program that [`exists`].
    pub(super) async fn run_program(&mut self, words: &[String], io: &mut Io<'_>) -> Flow {
        let Some((program, arguments)) = words.split_first() else {
            return Flow::Next(0);
        };
        let code = match base_name(program) {
            "true" => 0,
            "exit" => {
                return Flow::Exit(arguments.first().and_then(|code| code.parse().ok()).unwrap_or(self.last));
            }
            "sh" => self.run_shell(arguments, io).await,
            "cd" => self.change_folder(arguments.first().map_or("/root", String::as_str), io).await,
            "echo" => echo(arguments, io).await,
            "cat" => self.cat(arguments, io).await,
            "head" => self.head(arguments, io).await,
            "wc" => count(arguments, io).await,
            "sha256sum" => self.sha256sum(arguments, io).await,
            "sleep" => sleep(arguments, io).await,
            "ls" => self.list(arguments, io).await,
            "mkdir" => self.make_folders(arguments, io).await,
            "rm" => self.remove(arguments, io).await,
            "test" | "[" => u8::from(!self.test(arguments)),
            "tar" => tar::run(&self.container, &self.folder, arguments, io).await,
            "env" => {
                let variables = self.container.environment.iter().map(|(key, value)| format!("{key}={value}\n"));
                print(io, variables.collect::<String>()).await
            }
            "pwd" => print(io, format!("{}\n", self.folder)).await,
            "hostname" => print(io, format!("{}\n", self.container.hostname)).await,
            "date" => print(io, Timestamp::now().strftime("%a %b %e %H:%M:%S UTC %Y\n").to_string()).await,
            "stty" | "tty" => terminal(base_name(program), arguments, io).await,
            _ => 1,
        };
        Flow::Next(code)
    }

    async fn change_folder(&mut self, path: &str, io: &Io<'_>) -> u8 {
        let path = normalize(&self.folder, path);
        if !self.container.files().is_folder(&path) {
            return complain(io, &format!("sh: cd: can't cd to {path}: No such file or directory")).await;
        }
        self.folder = path;
        0
    }

    async fn cat(&self, paths: &[String], io: &mut Io<'_>) -> u8 {
        if paths.is_empty() || paths == ["-"] {
            while let Some(piece) = io.stdin.piece().await {
                if io.stdout.write(piece).await.is_err() {
                    return 1;
                }
            }
            return 0;
        }
        let mut code = 0;
        for path in paths {
            code |= match self.read_file(path) {
                Ok(content) => print(io, content).await,
                Err(why) => complain(io, &format!("cat: {why}")).await,
            };
        }
        code
    }

    /// `head -c N [FILE]`; `/dev/zero` is as long as one likes.
    async fn head(&self, arguments: &[String], io: &mut Io<'_>) -> u8 {
        let [flag, count, path @ ..] = arguments else {
            return complain(io, "head: use head -c N [FILE]").await;
        };
        let (Some(mut left), "-c") = (size(count), flag.as_str()) else {
            return complain(io, "head: use head -c N [FILE]").await;
        };
        match path.first().map(String::as_str) {
            Some("/dev/zero") => {
                while left > 0 {
                    // The smaller of the two is at most PIECE.
                    let piece = left.min(PIECE as u64);
                    if io.stdout.write(Bytes::from_static(&ZEROS[..piece as usize])).await.is_err() {
                        return 1;
                    }
                    left -= piece;
                }
                0
            }
            Some(path) => match self.read_file(path) {
                Ok(content) => {
                    print(io, content.slice(..content.len().min(usize::try_from(left).unwrap_or(usize::MAX)))).await
                }
                Err(why) => complain(io, &format!("head: {why}")).await,
            },
            None => {
                while let (true, Some(mut piece)) = (left > 0, io.stdin.piece().await) {
                    piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    left -= piece.len() as u64;
                    if io.stdout.write(piece).await.is_err() {
                        return 1;
                    }
                }
                0
            }
        }
    }

    async fn sha256sum(&self, paths: &[String], io: &mut Io<'_>) -> u8 {
        let mut context = digest::Context::new(&digest::SHA256);
        let name = paths.first().map_or("-", String::as_str);
        if name == "-" {
            while let Some(piece) = io.stdin.piece().await {
                context.update(&piece);
            }
        } else {
            match self.read_file(name) {
                Ok(content) => context.update(&content),
                Err(why) => return complain(io, &format!("sha256sum: {why}")).await,
            }
        }
        let hex: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        print(io, format!("{hex}  {name}\n")).await
    }

    async fn list(&self, arguments: &[String], io: &Io<'_>) -> u8 {
        let path = arguments.iter().find(|a| !a.starts_with('-')).map_or(self.folder.as_str(), String::as_str);
        let full = normalize(&self.folder, path);
        let listing = {
            let files = self.container.files();
            match files.get(&full).map(|entry| &entry.node) {
                Some(Node::Folder) => Some(files.names_in(&full).map(|name| format!("{name}\n")).collect()),
                Some(Node::File(_)) => Some(format!("{path}\n")),
                None => None,
            }
        };
        match listing {
            Some(listing) => print(io, listing).await,
            None => complain(io, &format!("ls: {path}: No such file or directory")).await,
        }
    }

    async fn make_folders(&self, arguments: &[String], io: &Io<'_>) -> u8 {
        for path in arguments.iter().filter(|argument| !argument.starts_with('-')) {
            let full = normalize(&self.folder, path);
            let made = self.container.files().put(&full, Node::Folder, Timestamp::now().as_second());
            if made.is_err() {
                return complain(io, &format!("mkdir: can't create directory '{path}': No space left on device")).await;
            }
        }
        0
    }

    async fn remove(&self, arguments: &[String], io: &Io<'_>) -> u8 {
        let forced = arguments.iter().any(|argument| argument.starts_with('-') && argument.contains('f'));
        for path in arguments.iter().filter(|argument| !argument.starts_with('-')) {
            let gone = self.container.files().remove(&normalize(&self.folder, path));
            if !gone && !forced {
                return complain(io, &format!("rm: can't remove '{path}': No such file or directory")).await;
            }
        }
        0
    }

    fn test(&self, arguments: &[String]) -> bool {
        let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "]").collect();
        let node = |path: &str| self.container.files().get(&normalize(&self.folder, path)).map(|e| e.node.clone());
        match words.as_slice() {
            ["-d", path] => matches!(node(path), Some(Node::Folder)),
            ["-f", path] => matches!(node(path), Some(Node::File(_))),
            ["-e", path] => node(path).is_some(),
            ["-n", text] | [text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            [left, "=" | "==", right] => left == right,
            [left, "!=", right] => left != right,
            _ => false,
        }
    }

    fn read_file(&self, path: &str) -> Result<Bytes, String> {
        match self.container.files().get(&normalize(&self.folder, path)).map(|entry| &entry.node) {
            Some(Node::File(content)) => Ok(content.clone()),
            Some(Node::Folder) => Err(format!("{path}: Is a directory")),
            None => Err(format!("{path}: No such file or directory")),
        }
    }
}

async fn echo(arguments: &[String], io: &Io<'_>) -> u8 {
    match arguments.split_first() {
        Some((flag, rest)) if flag == "-n" => print(io, rest.join(" ")).await,
        _ => print(io, format!("{}\n", arguments.join(" "))).await,
    }
}

/// `wc -c` of the input.
async fn count(arguments: &[String], io: &mut Io<'_>) -> u8 {
    if arguments != ["-c"] {
        return complain(io, "wc: only wc -c is played here").await;
    }
    let mut bytes = 0;
    while let Some(piece) = io.stdin.piece().await {
        bytes += piece.len();
    }
    print(io, format!("{bytes}\n")).await
}

async fn sleep(arguments: &[String], io: &Io<'_>) -> u8 {
    let seconds = arguments.first().and_then(|text| text.parse::<f64>().ok());
    match seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(duration) => {
            tokio::time::sleep(duration).await;
            0
        }
        None => complain(io, "sleep: use sleep SECONDS").await,
    }
}

async fn terminal(program: &str, arguments: &[String], io: &Io<'_>) -> u8 {
    let Some(terminal) = &io.terminal else {
        return if program == "tty" {
            1 | print(io, "not a tty\n").await
        } else {
            complain(io, "stty: standard input").await
        };
    };
    let size = *terminal.size.borrow();
    match (program, arguments) {
        ("tty", _) => print(io, "/dev/pts/0\n").await,
        (_, [what]) if what == "size" => print(io, format!("{} {}\n", size.rows, size.columns)).await,
        _ => complain(io, "stty: only stty size is played here").await,
    }
}

/// A number with an optional `k`, `M` or `G`.
fn size(text: &str) -> Option<u64> {
    let (digits, factor) = match text.char_indices().last()? {
        (end, 'k' | 'K') => (&text[..end], 1 << 10),
        (end, 'M') => (&text[..end], 1 << 20),
        (end, 'G') => (&text[..end], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

async fn print(io: &Io<'_>, text: impl Into<Bytes>) -> u8 {
    u8::from(io.stdout.write(text).await.is_err())
}
