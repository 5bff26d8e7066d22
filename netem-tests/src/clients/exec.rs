//! Somebody who types into `kubectl exec`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::websocket::WebSocket;
use super::{POD, RETRY_INTERVAL, User};
use crate::record::{Hears, Listener, Timed};

/// Between two keys; nobody waits for an echo before the next one.
const INTERVAL: Duration = Duration::from_millis(50);

const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;

/// Types, and types again whenever the session breaks off.
pub(super) async fn run(user: User) {
    let mut listener = Listener::new(&user.recorder, Hears::Stream);
    let mut told = user.once_open();
    let path = format!("{POD}/exec?container=web&command=cat&stdin=true&stdout=true");
    loop {
        if let Ok(socket) = WebSocket::open(&user, &path, PROTOCOL).await {
            told.is_open().await;
            let Err(_broken_off) = type_keys(socket, &user, &mut listener).await;
            user.recorder.stream_lost();
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

async fn type_keys(mut socket: WebSocket, user: &User, listener: &mut Listener<'_>) -> anyhow::Result<Infallible> {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
    // `cat` gives keys back in their order, however many in one message.
    let mut keys = VecDeque::new();
    loop {
        tokio::select! {
            _ = interval.tick() => {
                keys.push_back(Instant::now());
                socket.send(STDIN, b"x").await?;
            }
            message = socket.next() => {
                let (channel, bytes) = message?;
                if channel != STDOUT || bytes.is_empty() {
                    continue;
                }
                listener.heard();
                for key in keys.drain(..bytes.len().min(keys.len())) {
                    user.recorder.completed(Timed::Echo, key);
                }
            }
        }
    }
}
