//! The commands of the sample containers. Nothing of the host is run: a small set of programs is played in process,
//! and `sh` knows just enough of its language to join them.

mod language;
mod programs;
mod tar;

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;

use self::language::{Command, Join, Redirect};
use super::{
    files::{Node, normalize},
    pods::{Container, MainProcess},
    process::{Exit, Io, Output, Stdin},
};

/// Bytes a command may write into a file by `>`.
const MAX_REDIRECTED: usize = 16 * 1024 * 1024;
/// Shells within shells.
const MAX_DEPTH: usize = 8;
/// Exit code of a command that is not found, by a shell.
const NOT_FOUND: u8 = 127;
/// Exit code of a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Runs a command as the first process of an exec.
pub(super) async fn exec(container: Arc<Container>, command: &[String], mut io: Io<'_>) -> Exit {
    let Some(program) = command.first() else {
        return Exit::NoSuchProgram(String::new());
    };
    if !programs::exists(program) {
        return Exit::NoSuchProgram(program.clone());
    }
    let is_shell = programs::base_name(program) == "sh";
    let interrupt = io.terminal.as_ref().filter(|_| !is_shell).map(|terminal| terminal.interrupt.clone());
    let mut shell = Shell { container, folder: "/".to_owned(), last: 0, depth: 0 };
    let interrupted = async {
        match interrupt {
            Some(interrupt) => interrupt.notified().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        flow = shell.run_program(command, &mut io) => Exit::Code(flow.code()),
        () = interrupted => Exit::Code(INTERRUPTED),
    }
}

/// Joins the process a container runs already.
pub(super) async fn attach(container: &Container, io: Io<'_>) -> Exit {
    match container.process {
        MainProcess::Cat => {
            while let Some(piece) = io.stdin.piece().await {
                container.log.append(&piece);
                if io.stdout.write(piece).await.is_err() {
                    break;
                }
            }
            Exit::Code(0)
        }
        MainProcess::Ticker => {
            let mut next = container.log.end();
            loop {
                container.log.wait_beyond(next).await;
                let (lines, after) = container.log.read(next);
                next = after;
                for line in lines {
                    if io.stdout.write(line.text).await.is_err() {
                        return Exit::Code(0);
                    }
                }
            }
        }
    }
}

/// A shell: what its commands share.
struct Shell {
    container: Arc<Container>,
    folder: String,
    last: u8,
    depth: usize,
}

/// How it goes on after a command.
#[derive(Debug, Clone, Copy)]
enum Flow {
    /// With the next one; the exit code so far.
    Next(u8),
    /// The shell ends with this code.
    Exit(u8),
}

impl Flow {
    fn code(self) -> u8 {
        match self {
            Self::Next(code) | Self::Exit(code) => code,
        }
    }
}

impl Shell {
    /// `sh`: with `-c` the script, else line by line from its input.
    fn run_shell<'a>(
        &'a mut self,
        arguments: &'a [String],
        io: &'a mut Io<'_>,
    ) -> Pin<Box<dyn Future<Output = u8> + Send + 'a>> {
        Box::pin(async move {
            if self.depth >= MAX_DEPTH {
                return 1;
            }
            let folder = self.folder.clone();
            let mut inner = Self { container: self.container.clone(), folder, last: 0, depth: self.depth + 1 };
            match arguments {
                [flag, script, ..] if flag == "-c" => inner.run_script(script, io).await.code(),
                [] => inner.run_lines(io).await,
                _ => complain(io, "sh: only sh and sh -c SCRIPT are played here").await,
            }
        })
    }

    async fn run_lines(&mut self, io: &mut Io<'_>) -> u8 {
        loop {
            let terminal = io.terminal.clone();
            if terminal.is_some() && io.stdout.write(format!("{} # ", self.folder)).await.is_err() {
                return self.last;
            }
            let interrupted = async {
                match &terminal {
                    Some(terminal) => terminal.interrupt.notified().await,
                    None => std::future::pending().await,
                }
            };
            let run = async {
                let Some(line) = io.stdin.line().await else {
                    return Flow::Exit(self.last);
                };
                self.run_script(&line, io).await
            };
            let flow = tokio::select! {
                flow = run => flow,
                () = interrupted => Flow::Next(INTERRUPTED),
            };
            match flow {
                Flow::Exit(code) => return code,
                Flow::Next(code) => self.last = code,
            }
            if terminal.is_some() && self.last == INTERRUPTED && io.stdout.write("\n").await.is_err() {
                return self.last;
            }
        }
    }

    async fn run_script(&mut self, script: &str, io: &mut Io<'_>) -> Flow {
        for (join, pipeline) in language::split(script) {
            match (join, self.last) {
                (Join::And, code) if code != 0 => continue,
                (Join::Or, 0) => continue,
                _ => {}
            }
            match self.run_pipeline(&pipeline, io).await {
                Flow::Exit(code) => return Flow::Exit(code),
                Flow::Next(code) => self.last = code,
            }
        }
        Flow::Next(self.last)
    }

    /// Commands joined by `|`, each reading what the one before writes.
    fn run_pipeline<'a>(
        &'a mut self,
        commands: &'a [&'a str],
        io: &'a mut Io<'_>,
    ) -> Pin<Box<dyn Future<Output = Flow> + Send + 'a>> {
        Box::pin(async move {
            match commands {
                [] => Flow::Next(0),
                [only] => self.run_text(only, io).await,
                [first, rest @ ..] => {
                    let (writer, reader) = mpsc::channel(16);
                    let (stdout, stderr, terminal) = (io.stdout.clone(), io.stderr.clone(), io.terminal.clone());
                    let mut rest_io = Io { stdin: &mut Stdin::new(reader), stdout, stderr, terminal };
                    let container = self.container.clone();
                    let mut left = Self { container, folder: self.folder.clone(), last: self.last, depth: self.depth };
                    let left = async move {
                        let (stdout, stderr) = (Output::Pipe(writer), io.stderr.clone());
                        // The pipe ends with its writer, when this is done.
                        let mut io = Io { stdin: &mut *io.stdin, stdout, stderr, terminal: None };
                        left.run_text(first, &mut io).await
                    };
                    let (_, flow) = tokio::join!(left, self.run_pipeline(rest, &mut rest_io));
                    Flow::Next(flow.code())
                }
            }
        })
    }

    async fn run_text(&mut self, text: &str, io: &mut Io<'_>) -> Flow {
        let variable = |name: &str| match name {
            "?" => Some(self.last.to_string()),
            "PWD" => Some(self.folder.clone()),
            _ => self.container.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()),
        };
        match language::parse(text, &variable) {
            Ok(command) if command.words.is_empty() => Flow::Next(0),
            Ok(command) => self.run_command(&command, io).await,
            Err(error) => Flow::Next(complain(io, &format!("sh: {error}")).await),
        }
    }

    /// One command, its outputs led where the redirections say.
    async fn run_command(&mut self, command: &Command, io: &mut Io<'_>) -> Flow {
        let (mut files, mut readers) = (Vec::new(), Vec::new());
        let mut lead = |redirect: &Redirect| match redirect {
            Redirect::None(output) => output.clone(),
            Redirect::Null => Output::Null,
            Redirect::File { path, append } => {
                let (writer, reader) = mpsc::channel(16);
                files.push((normalize(&self.folder, path), *append));
                readers.push(tokio::spawn(collect(reader)));
                Output::Pipe(writer)
            }
        };
        let (stdout, stderr) = command.outputs(&io.stdout, &io.stderr);
        let (stdout, stderr, terminal) = (lead(&stdout), lead(&stderr), io.terminal.clone());
        let mut inner = Io { stdin: &mut *io.stdin, stdout, stderr, terminal };
        let run = async {
            let flow = if programs::exists(&command.words[0]) {
                self.run_program(&command.words, &mut inner).await
            } else {
                let text = format!("sh: {}: not found\n", command.words[0]);
                // Nobody to complain to: the exit code says the same.
                let _ = inner.stderr.write(text).await;
                Flow::Next(NOT_FOUND)
            };
            (inner.stdout, inner.stderr) = (Output::Null, Output::Null);
            flow
        };
        let collect = async {
            let mut contents = Vec::new();
            for reader in readers {
                // Collecting does not panic.
                contents.push(reader.await.unwrap_or_default());
            }
            contents
        };
        let (flow, contents) = tokio::join!(run, collect);
        for ((path, append), content) in files.into_iter().zip(contents) {
            if !self.write_file(&path, append, content) {
                return Flow::Next(complain(io, &format!("sh: can't create {path}")).await);
            }
        }
        flow
    }

    fn write_file(&self, path: &str, append: bool, content: Bytes) -> bool {
        let mut files = self.container.files();
        let before = match files.get(path).map(|entry| entry.node.clone()) {
            Some(Node::Folder) => return false,
            Some(Node::File(bytes)) if append => bytes,
            _ => Bytes::new(),
        };
        let content = Node::File([before, content].concat().into());
        files.put(path, content, jiff::Timestamp::now().as_second()).is_ok()
    }
}

async fn collect(mut reader: mpsc::Receiver<Bytes>) -> Bytes {
    let mut content = Vec::new();
    while let Some(piece) = reader.recv().await {
        let room = MAX_REDIRECTED - content.len();
        content.extend_from_slice(&piece[..piece.len().min(room)]);
    }
    content.into()
}

/// Writes a complaint and fails.
async fn complain(io: &Io<'_>, text: &str) -> u8 {
    // Nobody to complain to: the exit code says the same.
    let _ = io.stderr.write(format!("{text}\n")).await;
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::api::{
        pods::Pods,
        process::{self, Channel, Task},
    };

    fn container() -> Arc<Container> {
        let pod = serde_json::json!({
            "metadata": {"name": "web", "namespace": "demo", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "web", "env": [{"name": "COLOR", "value": "blue"}]}]},
        });
        Pods::default().container(&pod, None).unwrap()
    }

    async fn run_in(container: &Arc<Container>, command: &[&str], input: &str) -> (String, String, Exit) {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let mut running = process::start(container.clone(), Task::Exec(command), false);
        let (stdin, _) = mpsc::channel(1);
        let stdin = std::mem::replace(&mut running.stdin, stdin);
        stdin.send(input.to_owned().into()).await.unwrap();
        drop(stdin);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some((channel, bytes)) = running.output.recv().await {
            if channel == Channel::Stdout { &mut stdout } else { &mut stderr }.extend_from_slice(&bytes);
        }
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(stdout), text(stderr), running.exit().await)
    }

    async fn script(script: &str) -> (String, String, Exit) {
        run_in(&container(), &["sh", "-c", script], "").await
    }

    #[tokio::test]
    async fn a_script_writes_to_both_outputs_and_exits() {
        let expected = ("out\n".to_owned(), "err\n".to_owned(), Exit::Code(7));
        assert_eq!(script("echo out; echo err >&2; exit 7").await, expected);
    }

    #[tokio::test]
    async fn and_and_or_look_at_the_exit_code() {
        assert_eq!(script("true && echo a || echo b; false && echo c || echo d").await.0, "a\nd\n");
    }

    #[tokio::test]
    async fn a_pipe_joins_two_programs() {
        assert_eq!(script("head -c 100000 /dev/zero | wc -c").await.0, "100000\n");
    }

    #[tokio::test]
    async fn quotes_and_variables_are_known() {
        assert_eq!(script(r#"echo "$COLOR  sky" '$COLOR'; false; echo $?"#).await.0, "blue  sky $COLOR\n1\n");
    }

    #[tokio::test]
    async fn files_are_written_and_read() {
        let text = "mkdir -p /tmp/x; echo one > /tmp/x/a; echo two >> /tmp/x/a; cat /tmp/x/a; ls /tmp/x; rm -r /tmp/x; ls /tmp/x";
        let (stdout, stderr, exit) = script(text).await;
        assert_eq!(stdout, "one\ntwo\na\n");
        assert_eq!((stderr.as_str(), exit), ("ls: /tmp/x: No such file or directory\n", Exit::Code(1)));
    }

    #[tokio::test]
    async fn a_program_that_is_missing_never_runs() {
        let (_, _, exit) = run_in(&container(), &["/no/such/program"], "").await;
        assert_eq!(exit, Exit::NoSuchProgram("/no/such/program".to_owned()));
        assert_eq!(script("nothing").await.2, Exit::Code(127));
    }

    #[tokio::test]
    async fn what_was_archived_can_be_extracted() {
        let container = container();
        let text = "mkdir -p /tmp/d/sub; echo a > /tmp/d/a; echo b > /tmp/d/sub/b; tar cf - /tmp/d | tar xmf - -C /root; cat /root/tmp/d/sub/b";
        let (stdout, stderr, exit) = run_in(&container, &["sh", "-c", text], "").await;
        assert_eq!((stdout.as_str(), exit), ("b\n", Exit::Code(0)), "{stderr}");
    }

    #[tokio::test]
    async fn a_shell_reads_its_script_from_its_input() {
        let (stdout, _, exit) = run_in(&container(), &["sh"], "echo a\ncd /tmp; pwd\nexit 3\n").await;
        assert_eq!((stdout.as_str(), exit), ("a\n/tmp\n", Exit::Code(3)));
    }
}
