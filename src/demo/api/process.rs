//! Played processes: how they read and write, and how they end. Exec and attach run them, each transport in its way.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{pods::Container, shell, terminal};

/// Pieces of input or output that may wait.
const WAITING: usize = 16;
/// Largest piece of output: what `io.Copy` reads at once.
pub(super) const PIECE: usize = 32 * 1024;
/// The longest line a process reads as a whole.
const MAX_LINE: usize = 64 * 1024;

/// A process as its client sees it. Dropping it ends the process.
pub(super) struct Running {
    /// Its input; dropping the sender ends the input.
    pub stdin: mpsc::Sender<Bytes>,
    /// Its output; ends when the process has ended.
    pub output: mpsc::Receiver<(Channel, Bytes)>,
    /// The size of its terminal.
    pub resize: watch::Sender<Size>,
    task: AbortOnDropHandle<Exit>,
}

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exit {
    /// It ran and ended with this code.
    Code(u8),
    /// There is no such program; it never ran.
    NoSuchProgram(String),
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// What a process has to read from and write to.
pub(super) struct Io<'a> {
    pub stdin: &'a mut Stdin,
    pub stdout: Output,
    pub stderr: Output,
    /// Its terminal, when it has one.
    pub terminal: Option<Terminal>,
}

/// The terminal of a process.
#[derive(Clone)]
pub(super) struct Terminal {
    pub size: watch::Receiver<Size>,
    /// Ctrl-C was typed.
    pub interrupt: Arc<Notify>,
}

/// The input of a process.
pub(super) struct Stdin {
    incoming: mpsc::Receiver<Bytes>,
    pending: Bytes,
    line: Vec<u8>,
}

/// An output of a process.
#[derive(Clone)]
pub(super) enum Output {
    /// To the client; on a terminal, ends of lines become CR LF.
    Client { sender: mpsc::Sender<(Channel, Bytes)>, channel: Channel, terminal: bool },
    /// Into the input of another process.
    Pipe(mpsc::Sender<Bytes>),
    /// Nowhere.
    Null,
}

/// Nobody reads this output any more.
#[derive(Debug)]
pub(super) struct BrokenPipe;

/// What to run in a container.
pub(super) enum Task {
    /// A command.
    Exec(Vec<String>),
    /// The container's own process, which is running already.
    Attach,
}

/// How long a command takes to start. A container runtime takes longer still, and kubectl 1.32 relies on it: over
/// WebSocket it drops what arrives before it has made its streams ("Unknown stream id").
const START: Duration = Duration::from_millis(30);

/// Starts a process.
pub(super) fn start(container: Arc<Container>, task: Task, with_terminal: bool) -> Running {
    let (stdin, raw) = mpsc::channel(WAITING);
    let (sender, output) = mpsc::channel(WAITING);
    let resize = watch::Sender::new(Size::default());
    let to_client = |channel| Output::Client { sender: sender.clone(), channel, terminal: with_terminal };
    // On a terminal there is one output only.
    let stderr = if with_terminal { Channel::Stdout } else { Channel::Stderr };
    let (stdout, stderr) = (to_client(Channel::Stdout), to_client(stderr));
    drop(sender);
    let size = resize.subscribe();
    let future = async move {
        let stopped = container.stopped.clone();
        let run = async move {
            if matches!(task, Task::Exec(_)) {
                tokio::time::sleep(START).await;
            }
            if with_terminal {
                let terminal = Terminal { size, interrupt: Arc::default() };
                on_terminal(container, task, raw, stdout, stderr, terminal).await
            } else {
                let io = Io { stdin: &mut Stdin::new(raw), stdout, stderr, terminal: None };
                run(container, task, io).await
            }
        };
        tokio::select! {
            exit = run => exit,
            // SIGKILL, as when a pod is deleted.
            () = stopped.cancelled() => Exit::Code(137),
        }
    };
    Running { stdin, output, resize, task: AbortOnDropHandle::new(tokio::spawn(future)) }
}

impl Running {
    /// How the process ended; to be asked when its output has ended.
    pub async fn exit(self) -> Exit {
        // A played process that panicked is one that crashed: SIGABRT.
        self.task.await.unwrap_or(Exit::Code(134))
    }
}

async fn run(container: Arc<Container>, task: Task, io: Io<'_>) -> Exit {
    match task {
        Task::Exec(command) => shell::exec(container, &command, io).await,
        Task::Attach => shell::attach(&container, io).await,
    }
}

async fn on_terminal(
    container: Arc<Container>,
    task: Task,
    raw: mpsc::Receiver<Bytes>,
    stdout: Output,
    stderr: Output,
    terminal: Terminal,
) -> Exit {
    let (cooked, stdin) = mpsc::channel(WAITING);
    let interrupt = terminal.interrupt.clone();
    let echo = stdout.clone();
    let mut stdin = Stdin::new(stdin);
    let io = Io { stdin: &mut stdin, stdout, stderr, terminal: Some(terminal) };
    tokio::select! {
        exit = run(container, task, io) => exit,
        never = async {
            terminal::discipline(raw, cooked, echo, &interrupt).await;
            std::future::pending().await
        } => never,
    }
}

impl Stdin {
    /// Input from a channel. An empty piece is the end of input for who reads it, as Ctrl-D is.
    pub fn new(incoming: mpsc::Receiver<Bytes>) -> Self {
        Self { incoming, pending: Bytes::new(), line: Vec::new() }
    }

    /// The next piece; nothing at the end.
    pub async fn piece(&mut self) -> Option<Bytes> {
        if !self.pending.is_empty() {
            return Some(std::mem::take(&mut self.pending));
        }
        self.incoming.recv().await.filter(|piece| !piece.is_empty())
    }

    /// The next line without its end; nothing at the end. May be given up and asked again.
    pub async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                self.line.extend_from_slice(&self.pending[..end]);
                self.pending = rest;
                return Some(self.take_line());
            }
            self.line.extend_from_slice(&self.pending);
            self.pending = Bytes::new();
            if self.line.len() > MAX_LINE {
                return Some(self.take_line());
            }
            match self.incoming.recv().await.filter(|piece| !piece.is_empty()) {
                Some(piece) => self.pending = piece,
                None if self.line.is_empty() => return None,
                None => return Some(self.take_line()),
            }
        }
    }

    fn take_line(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned()
    }
}

impl Output {
    /// Writes, waiting while the reader is slow.
    pub async fn write(&self, bytes: impl Into<Bytes>) -> Result<(), BrokenPipe> {
        let mut bytes: Bytes = bytes.into();
        if let Self::Client { terminal: true, .. } = self {
            bytes = with_carriage_returns(&bytes);
        }
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            match self {
                Self::Client { sender, channel, .. } => sender.send((*channel, piece)).await.map_err(|_| BrokenPipe)?,
                Self::Pipe(sender) => sender.send(piece).await.map_err(|_| BrokenPipe)?,
                Self::Null => {}
            }
        }
        Ok(())
    }
}

/// What a terminal does on output (`ONLCR`).
fn with_carriage_returns(bytes: &Bytes) -> Bytes {
    if !bytes.contains(&b'\n') {
        return bytes.clone();
    }
    let mut out = Vec::with_capacity(bytes.len() + 8);
    for &byte in bytes {
        if byte == b'\n' && out.last() != Some(&b'\r') {
            out.push(b'\r');
        }
        out.push(byte);
    }
    out.into()
}
