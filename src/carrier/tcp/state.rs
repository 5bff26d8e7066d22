//! What the two ends of a stream over TCP within this process share: the halves that the rest of the program holds, and
//! the pump in the connection's task.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::{Bytes, BytesMut};

use super::super::stream::ConnectionEnd;
use super::receive_buffer::ReceiveBuffer;
use crate::wire::limits::INITIAL_CREDIT;
use crate::wire::{ErrorCode, Record, WireError};

/// What the two ends of a stream within this process share.
#[derive(Debug)]
pub struct StreamState(Mutex<Inner>);

/// The state itself.
#[derive(Debug)]
pub struct Inner {
    pub sending: Sending,
    /// Written and not yet handed to yamux.
    pub outgoing: VecDeque<Bytes>,
    pub outgoing_length: usize,
    /// Bytes written since the beginning, and how many the peer takes.
    pub written: u64,
    pub credit: u64,
    pub receiving: Receiving,
    pub incoming: ReceiveBuffer,
    /// Bytes received and read since the beginning, and how many the peer has been told that it may send.
    pub received: u64,
    pub read: u64,
    pub announced: u64,
    /// By how much the peer's credit grew last.
    pub granted: u64,
    pub window: u64,
    pub credit_due: bool,
    pub stop_due: Option<ErrorCode>,
    pub lost: Option<ConnectionEnd>,
    pub pump: Option<Waker>,
    pub reader: Option<Waker>,
    pub writer: Option<Waker>,
    pub watchers: Vec<Waker>,
}

/// This side's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    Open,
    /// To be ended once everything has gone out.
    Finishing,
    /// To be broken off.
    Resetting(ErrorCode),
    /// END or RESET has gone out.
    Done,
    /// The peer wants no more.
    Stopped(ErrorCode),
}

/// The peer's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiving {
    Open,
    /// Whole; some of it may have yet to be read.
    Ended,
    Reset(ErrorCode),
    /// Nobody here wants the rest.
    Unwanted,
}

/// Records up to this length are written in one piece: it is what yamux puts into one frame.
const WHOLE_RECORD: usize = 16 * 1024;

impl StreamState {
    pub fn new(window: u64, acknowledge: bool) -> Self {
        Self(Mutex::new(Inner {
            sending: Sending::Open,
            outgoing: VecDeque::new(),
            outgoing_length: 0,
            written: 0,
            credit: INITIAL_CREDIT,
            receiving: Receiving::Open,
            incoming: ReceiveBuffer::default(),
            received: 0,
            read: 0,
            announced: INITIAL_CREDIT,
            granted: INITIAL_CREDIT,
            window: window.max(INITIAL_CREDIT),
            credit_due: acknowledge,
            stop_due: None,
            lost: None,
            pump: None,
            reader: None,
            writer: None,
            watchers: Vec::new(),
        }))
    }

    /// The connection is gone.
    pub fn lose(&self, end: &ConnectionEnd) {
        let mut inner = self.inner();
        inner.lost = Some(end.clone());
        inner.wake_reader();
        inner.wake_writer_and_watchers();
    }

    /// Nobody here wants the stream, which the peer has not heard of yet.
    pub fn abandon(&self) {
        let mut inner = self.inner();
        inner.sending = Sending::Done;
        inner.receiving = Receiving::Unwanted;
        inner.wake_pump();
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    pub fn wake_pump(&mut self) {
        self.pump.take().into_iter().for_each(Waker::wake);
    }

    pub fn wake_reader(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn wake_writer_and_watchers(&mut self) {
        self.writer.take().into_iter().for_each(Waker::wake);
        self.watchers.drain(..).for_each(Waker::wake);
    }

    pub fn drop_outgoing(&mut self) {
        self.outgoing.clear();
        self.outgoing_length = 0;
    }

    /// What a record of the peer means; `packet_length` is what a piece of it keeps alive.
    pub fn apply(&mut self, record: Record, packet_length: usize) -> Result<(), WireError> {
        match record {
            Record::Bytes(bytes) => {
                self.received += bytes.len() as u64;
                if self.received > self.announced {
                    let limit = usize::try_from(self.announced).unwrap_or(usize::MAX);
                    return Err(WireError::TooLong { what: "a stream", length: self.received, limit });
                }
                if self.receiving == Receiving::Open {
                    self.incoming.push(bytes, packet_length);
                    self.wake_reader();
                }
            }
            Record::End if self.receiving == Receiving::Open => {
                self.receiving = Receiving::Ended;
                self.wake_reader();
            }
            Record::Reset(code) if self.receiving == Receiving::Open => {
                self.receiving = Receiving::Reset(code);
                self.incoming.clear();
                self.wake_reader();
            }
            Record::Stop(code) => self.stopped_by_peer(code),
            Record::Credit(offset) => {
                self.credit = self.credit.max(offset);
                self.writer.take().into_iter().for_each(Waker::wake);
            }
            // For a direction that is over already. The reader lets no record of the connection stream through here.
            _ => {}
        }
        Ok(())
    }

    /// The first word about it counts.
    fn stopped_by_peer(&mut self, code: ErrorCode) {
        if matches!(self.sending, Sending::Done | Sending::Stopped(_)) {
            return;
        }
        self.sending = Sending::Stopped(code);
        self.drop_outgoing();
        self.wake_writer_and_watchers();
    }

    /// Yamux has ended the stream and the records had not: whatever is still open is broken off.
    pub fn broken(&mut self) {
        if self.lost.is_some() {
            return;
        }
        if self.receiving == Receiving::Open {
            self.receiving = Receiving::Reset(ErrorCode::Internal);
            self.incoming.clear();
            self.wake_reader();
        }
        self.stopped_by_peer(ErrorCode::Internal);
        self.stop_due = None;
    }

    /// Nothing more will be said in either direction.
    pub fn is_over(&self) -> bool {
        self.receiving != Receiving::Open
            && matches!(self.sending, Sending::Done | Sending::Stopped(_))
            && self.stop_due.is_none()
    }

    /// What to send next, as pieces for yamux; signals go before bytes. None: nothing.
    pub fn next_pieces(&mut self, pieces: &mut VecDeque<Bytes>) {
        let mut out = BytesMut::new();
        if let Some(code) = self.stop_due.take() {
            Record::Stop(code).encode(&mut out);
        }
        if std::mem::take(&mut self.credit_due) {
            self.announced = self.read + self.window;
            self.granted = self.window;
            Record::Credit(self.announced).encode(&mut out);
        }
        match self.sending {
            Sending::Resetting(code) => {
                Record::Reset(code).encode(&mut out);
                self.sending = Sending::Done;
                self.wake_writer_and_watchers();
            }
            Sending::Open | Sending::Finishing if !self.outgoing.is_empty() => {
                self.take_bytes_record(out, pieces);
                return;
            }
            Sending::Finishing => {
                Record::End.encode(&mut out);
                self.sending = Sending::Done;
                self.wake_writer_and_watchers();
            }
            Sending::Open | Sending::Done | Sending::Stopped(_) => {}
        }
        if !out.is_empty() {
            pieces.push_back(out.freeze());
        }
    }

    /// One BYTES record, behind what is in `out`: short pieces joined and copied, a long one as it is.
    fn take_bytes_record(&mut self, mut out: BytesMut, pieces: &mut VecDeque<Bytes>) {
        let mut length = 0;
        let joined = self
            .outgoing
            .iter()
            .take_while(|piece| {
                length += piece.len();
                length <= WHOLE_RECORD
            })
            .count();
        if joined == 0 {
            // The caller has seen that there is one.
            let long = self.outgoing.pop_front().unwrap_or_default();
            self.outgoing_length -= long.len();
            Record::encode_bytes_header(long.len(), &mut out);
            pieces.extend([out.freeze(), long]);
        } else {
            let length = self.outgoing.iter().take(joined).map(Bytes::len).sum();
            self.outgoing_length -= length;
            out.reserve(16 + length);
            Record::encode_bytes_header(length, &mut out);
            self.outgoing.drain(..joined).for_each(|piece| out.extend_from_slice(&piece));
            pieces.push_back(out.freeze());
        }
        self.writer.take().into_iter().for_each(Waker::wake);
    }
}
