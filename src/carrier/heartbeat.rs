//! Notices when the peer has stopped answering, and is there when it answers again.
//!
//! A connection that is idle costs next to nothing: quinn's keep-alive, or a heartbeat where a connection is to be asked
//! more often ([`KeepAlive`]), goes out now and then, and the heartbeat looks whether it was answered. While something is
//! unanswered, heartbeats go out twice a second, or less often once the path is suspect and nobody waits: datagrams
//! (RFC 9221) that pass the congestion window (see [`super::congestion`]). The peer answers each with another one, because
//! quinn holds back even acknowledgements while there is data that does not fit the window. The first exchange after an
//! outage sets loss recovery in motion at both ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, sleep_until, timeout};

use super::congestion::Pulse;

/// How long the peer may take to acknowledge before heartbeats begin; two round trips where those take longer.
const UNANSWERED_AFTER: Duration = Duration::from_secs(1);

/// The time between heartbeats while streams are open. It bounds how long they sleep on after an outage.
const BEAT_EVERY: Duration = Duration::from_millis(500);

/// The longest time between those of a connection without work. A stub that was away for a moment comes back to thousands of
/// such connections, and must not have to answer all of them twice a second before it gets to anything else.
const BEAT_IDLE_EVERY: Duration = Duration::from_secs(8);

/// A timer that rings later than this tells that this process had other things to do: answers may have come meanwhile, and
/// wait to be read.
const LATE: Duration = Duration::from_millis(200);

/// How often the peer gets its time at most because of that.
const MOST_GRANTS: u32 = 4;

/// As many heartbeats without an answer make the path suspect.
const MISSED_BEATS: u32 = 3;

/// A heartbeat. Eight bytes make its packet long enough to be answered with a stateless reset by a peer that has lost
/// the connection (RFC 9000, section 10.3).
const BEAT: &[u8] = b"qtunnel?";

/// The answer to a heartbeat, which asks for none.
const ANSWER: &[u8] = b"qtunnel!";

/// The path to the peer, as far as it can be told from what the peer acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathState {
    /// Where the peer is.
    pub remote: SocketAddr,
    /// Since when the peer has left several heartbeats unanswered. `None` while it answers.
    pub suspect_since: Option<Instant>,
}

/// For how long this end may have sent nothing before it asks whether the peer is still there. quinn's own keep-alive stays
/// as it was when the connection began; this one may change, and only shorter times than quinn's do anything.
#[derive(Debug)]
pub struct KeepAlive {
    milliseconds: AtomicU64,
}

impl Default for KeepAlive {
    /// quinn's alone.
    fn default() -> Self {
        Self { milliseconds: AtomicU64::new(u64::MAX) }
    }
}

impl KeepAlive {
    /// Counts from the next packet on.
    pub fn set(&self, silence: Duration) {
        self.milliseconds.store(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }
}

/// Watches over `connection` until it ends and tells `state` of changes.
pub async fn watch_over(
    connection: quinn::Connection,
    pulse: Arc<Pulse>,
    keep_alive: Arc<KeepAlive>,
    state: watch::Sender<PathState>,
) {
    let peer_beats = Notify::new();
    tokio::select! {
        () = answer_beats(&connection, &pulse, &peer_beats) => {}
        () = watch_answers(&connection, &pulse, &keep_alive, &peer_beats, &state) => {}
        () = refuse_unidirectional_streams(&connection) => {}
    }
}

/// Unidirectional streams carry nothing in version 1 of the protocol; what comes on them is not kept.
async fn refuse_unidirectional_streams(connection: &quinn::Connection) {
    // Dropped, it tells the peer to stop.
    while let Ok(_unwanted) = connection.accept_uni().await {}
}

/// Sends a packet to the peer now, whatever is in flight.
pub fn beat(connection: &quinn::Connection, pulse: &Pulse) {
    send(connection, pulse, BEAT);
}

fn send(connection: &quinn::Connection, pulse: &Pulse, datagram: &'static [u8]) {
    pulse.force();
    // A peer that takes no datagrams is probed by quinn alone, and a connection that is closed needs no heartbeat.
    let _ = connection.send_datagram(Bytes::from_static(datagram));
}

/// Answers the peer's heartbeats until the connection ends.
async fn answer_beats(connection: &quinn::Connection, pulse: &Pulse, peer_beats: &Notify) {
    while let Ok(datagram) = connection.read_datagram().await {
        if datagram == BEAT {
            send(connection, pulse, ANSWER);
            peer_beats.notify_waiters();
        }
    }
}

async fn watch_answers(
    connection: &quinn::Connection,
    pulse: &Pulse,
    keep_alive: &KeepAlive,
    peer_beats: &Notify,
    state: &watch::Sender<PathState>,
) {
    let mut monitor = Monitor::default();
    let mut next = Next::LookAgain;
    loop {
        match next {
            Next::WaitForTraffic => {
                let is_silent = timeout(keep_alive.get(), pulse.sent()).await.is_err();
                if is_silent {
                    beat(connection, pulse);
                }
                if is_silent || monitor.has_asked(connection) {
                    grant(patience(connection)).await;
                }
            }
            Next::LookAgain => grant(patience(connection)).await,
            Next::Beat => {
                beat(connection, pulse);
                let has_work = pulse.has_work();
                tokio::select! {
                    () = sleep(monitor.until_next_beat(has_work)) => {}
                    () = pulse.answered() => {}
                    // The peer's heartbeat came through before one is due here: the network is back. Where nobody waits, the
                    // peer's acknowledgement of its answer is soon enough.
                    () = peer_beats.notified(), if has_work => {}
                    () = pulse.work_begins(), if !has_work => {}
                }
            }
        }
        next = monitor.look(pulse, connection);
        publish(state, connection, &monitor);
    }
}

/// Gives the peer so much time, and again where this process was too busy meanwhile to read what has come, but not for ever: its
/// heartbeats to thousands of peers that have answered would keep it busy.
async fn grant(patience: Duration) {
    for _ in 0..MOST_GRANTS {
        let due = tokio::time::Instant::now() + patience;
        sleep_until(due).await;
        if due.elapsed() < LATE {
            return;
        }
    }
}

fn patience(connection: &quinn::Connection) -> Duration {
    UNANSWERED_AFTER.max(connection.rtt() * 2)
}

fn publish(state: &watch::Sender<PathState>, connection: &quinn::Connection, monitor: &Monitor) {
    let now = PathState { remote: connection.remote_address(), suspect_since: monitor.suspect_since() };
    state.send_if_modified(|before| std::mem::replace(before, now) != now);
}

/// What is to be done after a look at the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Everything is answered.
    WaitForTraffic,
    /// Something may be unanswered, and has not been for long.
    LookAgain,
    /// Something is unanswered: send a heartbeat.
    Beat,
}

/// What can be seen of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct View {
    /// Packets that the peer has acknowledged.
    acknowledged: u64,
    /// Frames sent that have to be acknowledged.
    asked: u64,
    /// Whether certainly nothing is left to be acknowledged.
    clear: bool,
}

/// Tells from one look to the next whether the peer answers.
#[derive(Debug, Default)]
struct Monitor {
    before: View,
    /// Whether something may have been unanswered at the last look.
    open: bool,
    silent_since: Option<Instant>,
    beats: u32,
}

impl Monitor {
    /// Whether something that has to be acknowledged was sent since the last look.
    fn has_asked(&self, connection: &quinn::Connection) -> bool {
        frames_to_acknowledge(&connection.stats().frame_tx) != self.before.asked
    }

    fn look(&mut self, pulse: &Pulse, connection: &quinn::Connection) -> Next {
        let view = View {
            acknowledged: pulse.acknowledged(),
            asked: frames_to_acknowledge(&connection.stats().frame_tx),
            clear: pulse.is_clear(),
        };
        self.judge(view, Instant::now())
    }

    fn judge(&mut self, view: View, now: Instant) -> Next {
        let before = std::mem::replace(&mut self.before, view);
        if view.acknowledged != before.acknowledged {
            let was_silent = self.silent_since.take().is_some();
            self.beats = 0;
            self.open = !view.clear;
            if was_silent && self.open {
                // The acknowledgement may be one that the outage held up. Everything since is still unanswered.
                return Next::Beat;
            }
        } else if self.open || view.asked != before.asked {
            // Looks are as far apart as the peer has time to answer, so what was open before has not been answered.
            self.open = true;
            self.silent_since.get_or_insert(now);
            self.beats += 1;
            return Next::Beat;
        }
        if self.open { Next::LookAgain } else { Next::WaitForTraffic }
    }

    /// Without work, twice as long with each heartbeat after those that make the path suspect.
    fn until_next_beat(&self, has_work: bool) -> Duration {
        match self.beats.saturating_sub(MISSED_BEATS) {
            beyond if beyond > 0 && !has_work => {
                BEAT_EVERY.saturating_mul(2_u32.saturating_pow(beyond)).min(BEAT_IDLE_EVERY)
            }
            _ => BEAT_EVERY,
        }
    }

    fn suspect_since(&self) -> Option<Instant> {
        self.silent_since.filter(|_| self.beats > MISSED_BEATS)
    }
}

/// Everything but acknowledgements and the close of the connection (RFC 9002, section 2).
fn frames_to_acknowledge(frames: &quinn_proto::FrameStats) -> u64 {
    frames.ack_frequency
        + frames.crypto
        + frames.data_blocked
        + frames.datagram
        + u64::from(frames.handshake_done)
        + frames.immediate_ack
        + frames.max_data
        + frames.max_stream_data
        + frames.max_streams_bidi
        + frames.max_streams_uni
        + frames.new_connection_id
        + frames.new_token
        + frames.path_challenge
        + frames.path_response
        + frames.ping
        + frames.reset_stream
        + frames.retire_connection_id
        + frames.stream_data_blocked
        + frames.streams_blocked_bidi
        + frames.streams_blocked_uni
        + frames.stop_sending
        + frames.stream
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(acknowledged: u64, asked: u64, clear: bool) -> View {
        View { acknowledged, asked, clear }
    }

    #[test]
    fn an_idle_connection_whose_keep_alive_is_answered_is_left_alone() {
        let mut monitor = Monitor::default();
        let now = Instant::now();
        assert_eq!(monitor.judge(view(1, 1, true), now), Next::WaitForTraffic);
        assert_eq!(monitor.judge(view(2, 2, true), now), Next::WaitForTraffic);
    }

    #[test]
    fn sending_nothing_but_acknowledgements_asks_for_no_answer() {
        let mut monitor = Monitor::default();
        let now = Instant::now();
        assert_eq!(monitor.judge(view(1, 1, true), now), Next::WaitForTraffic);
        assert_eq!(monitor.judge(view(1, 1, false), now), Next::WaitForTraffic);
    }

    #[test]
    fn a_path_is_suspect_after_three_missed_heartbeats_and_recovers_with_the_first_answer() {
        let mut monitor = Monitor::default();
        let began = Instant::now();
        assert_eq!(monitor.judge(view(1, 1, true), began), Next::WaitForTraffic);
        for asked in 2..5 {
            assert_eq!(monitor.judge(view(1, asked, false), began), Next::Beat);
            assert_eq!(monitor.suspect_since(), None);
        }
        assert_eq!(monitor.judge(view(1, 5, false), began + BEAT_EVERY), Next::Beat);
        assert_eq!(monitor.suspect_since(), Some(began));
        assert_eq!(monitor.judge(view(2, 5, true), began + BEAT_EVERY), Next::WaitForTraffic);
        assert_eq!(monitor.suspect_since(), None);
    }

    #[test]
    fn heartbeats_that_nobody_waits_for_become_rare_once_the_path_is_suspect() {
        let monitor = |beats| Monitor { beats, ..Monitor::default() };
        let idle: Vec<u128> = (1..=8).map(|beats| monitor(beats).until_next_beat(false).as_millis()).collect();
        assert_eq!(idle, [500, 500, 500, 1000, 2000, 4000, 8000, 8000]);
        assert!((1..100).all(|beats| monitor(beats).until_next_beat(true) == BEAT_EVERY));
        assert_eq!(monitor(u32::MAX).until_next_beat(false), BEAT_IDLE_EVERY);
    }

    #[test]
    fn a_late_acknowledgement_from_before_an_outage_does_not_end_the_heartbeats() {
        let mut monitor = Monitor { silent_since: Some(Instant::now()), open: true, beats: 9, ..Monitor::default() };
        assert_eq!(monitor.judge(view(1, 1, false), Instant::now()), Next::Beat);
        assert_eq!(monitor.suspect_since(), None);
        assert_eq!(monitor.judge(view(2, 1, false), Instant::now()), Next::LookAgain);
    }

    #[test]
    fn something_sent_just_before_a_look_is_looked_at_again() {
        let mut monitor = Monitor::default();
        let now = Instant::now();
        assert_eq!(monitor.judge(view(1, 2, false), now), Next::LookAgain);
        assert_eq!(monitor.judge(view(1, 2, false), now), Next::Beat);
    }
}
