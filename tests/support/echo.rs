//! A `kubectl exec` session that is never silent: what it is sent comes back.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::kubectl::Kubectl;
use super::process::{Input, Process};
use super::{DEADLINE, eventually};

/// The time between two lines.
const EVERY: Duration = Duration::from_millis(20);

/// `cat` in a container of the sample cluster, and a line every 20 ms.
pub struct EchoSession {
    process: Process,
    stop: Arc<AtomicBool>,
    writer: JoinHandle<u64>,
    reader: JoinHandle<u64>,
    echoes: Arc<Mutex<Vec<Instant>>>,
}

impl EchoSession {
    /// Starts one and waits for the first echo.
    pub fn start(kubectl: &Kubectl) -> Self {
        let (output, input) = std::io::pipe().unwrap();
        let command = kubectl.command(&["exec", "-i", "-n", "demo", "web", "-c", "web", "--", "cat"]);
        let mut process = Process::start_with_stdout("exec cat", command, Input::Piped, Some(Stdio::from(input)));
        let mut stdin = process.take_stdin();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let writer = std::thread::spawn(move || {
            let mut line = 0u64;
            while !stopped.load(Ordering::SeqCst) {
                writeln!(stdin, "{line}").expect("kubectl reads");
                line += 1;
                std::thread::sleep(EVERY);
            }
            line
        });
        let echoes = Arc::new(Mutex::new(Vec::new()));
        let noted = echoes.clone();
        let reader = std::thread::spawn(move || {
            let mut expected = 0u64;
            for line in BufReader::new(output).lines() {
                assert_eq!(line.unwrap(), expected.to_string(), "every line, in order");
                expected += 1;
                noted.lock().unwrap().push(Instant::now());
            }
            expected
        });
        let session = Self { process, stop, writer, reader, echoes };
        eventually("an echo", || (!session.echoes.lock().unwrap().is_empty()).then_some(()));
        session.longest_silence();
        session
    }

    /// Lets it run.
    pub fn runs_for(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    /// The longest time between two echoes since this was asked last.
    pub fn longest_silence(&self) -> Duration {
        let mut echoes = self.echoes.lock().unwrap();
        let last = *echoes.last().expect("an echo");
        let longest = echoes.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        *echoes = vec![last];
        longest.max(last.elapsed())
    }

    /// When the first echo after `moment` came; waits for it.
    pub fn first_after(&self, moment: Instant) -> Duration {
        let first = eventually("an echo after the outage", || {
            let echoes = self.echoes.lock().unwrap();
            echoes.iter().find(|echo| **echo > moment).copied()
        });
        first - moment
    }

    /// Ends the input; every line must have come back.
    pub fn ends_well(self) {
        let Self { mut process, stop, writer, reader, .. } = self;
        stop.store(true, Ordering::SeqCst);
        let written = writer.join().unwrap();
        let status = process.wait_at_most(DEADLINE);
        assert!(status.success(), "{status}");
        assert_eq!(reader.join().unwrap(), written);
    }
}
