//! HTTP/3 (RFC 9114) on the UDP port that agents use as well.
//!
//! Early data needs no rules of its own: a connection gets here once its handshake is complete, which nobody who replays
//! packets can bring about (RFC 8470, section 3).

mod body;
mod guard;
mod quic;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h3::error::{Code, ConnectionError, StreamError};
use h3::quic::SendStream as _;
use h3::server::{RequestResolver, RequestStream};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::body::{BrokenBody, RequestBody};
use self::quic::{Cancelled, Latest, QuicConnection, SendStream};
use super::{ClientConnection, Leave, Leaving, Visit};
use crate::carrier::{presented_chain, requested_server_name};
use crate::kube::headers;
use crate::pki::{CertificateError, PeerRole};
use crate::stub::body::{AnswerBody, BrokenAnswer};
use crate::stub::limits::Stranger;
use crate::stub::shared::Shared;
use crate::wire::limits::MAX_HEAD_LENGTH;

/// Bytes that a client whose requests are authenticated may have in flight over all its streams.
const RECEIVE_WINDOW: u32 = 32 << 20;

/// Requests at once on the connection of a stranger (RFC 9114, section 6.1, asks for 100 at least).
const STRANGERS_REQUESTS: u32 = 100;

/// The most requests at once on one connection, whatever the settings say. quinn sets memory aside for each.
const MAX_REQUESTS: u32 = 1000;

/// Requests that a client may give up before their answer begins. Each answer that begins allows one more, up to as many:
/// resets as fast as requests can be made cost the stub more than the client (CVE-2023-44487).
const UNANSWERED: usize = 256;

/// How long a client has to hang up after it was told that the stub stops.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves a connection of a client whose handshake is complete, until it ends, or until the stub takes no more requests and
/// the end of those that it has then.
pub async fn serve(shared: Arc<Shared>, connection: quinn::Connection, stranger: Stranger) {
    let address = connection.remote_address();
    if let Err(error) = admit_and_serve(shared, &connection, stranger).await {
        tracing::debug!(%address, "a client's HTTP/3 connection ended: {error}");
    }
}

async fn admit_and_serve(shared: Arc<Shared>, quic: &quinn::Connection, stranger: Stranger) -> Result<(), Http3Error> {
    let connection = Arc::new(client_connection(&shared, quic).inspect_err(|error| error.tell(quic))?);
    let Some(_place) = shared.limits.admit_http3(connection.address.ip()) else {
        Http3Error::TooMany.tell(quic);
        return Err(Http3Error::TooMany);
    };
    let latest = Latest::default();
    let mut http3 = h3::server::builder()
        .max_field_section_size(MAX_HEAD_LENGTH as u64)
        .send_grease(false)
        .build(QuicConnection::new(quic.clone(), latest.clone()))
        .await?;
    let (visit, leaving) = Visit::begin(shared.clone(), connection, stranger);
    let client = Arc::new(Http3Client { shared, visit, credit: Credit::default() });
    // Dropped, h3's connection closes the one below without a word, so that has to have been told before.
    client.serve(&mut http3, quic, &latest, leaving).await.inspect_err(|error| error.tell(quic))
}

/// Why a connection ended otherwise than by itself.
#[derive(Debug, thiserror::Error)]
enum Http3Error {
    #[error("the users' authority does not vouch for the certificate: {0}")]
    NotVouchedFor(rustls::Error),
    #[error("the certificate: {0}")]
    Certificate(#[from] CertificateError),
    #[error("too many clients")]
    TooMany,
    #[error("nobody has authenticated in time")]
    Stranger,
    #[error("too many requests were given up before they were answered")]
    RapidReset,
    #[error("{0}")]
    Connection(#[from] ConnectionError),
}

impl Http3Error {
    /// Closes the connection with the reason.
    fn tell(&self, quic: &quinn::Connection) {
        quic.close(self.code(), self.to_string().as_bytes());
    }

    fn code(&self) -> quinn::VarInt {
        let code = match self {
            Self::NotVouchedFor(_) | Self::Certificate(_) => Code::H3_GENERAL_PROTOCOL_ERROR,
            Self::TooMany | Self::Stranger | Self::RapidReset => Code::H3_EXCESSIVE_LOAD,
            Self::Connection(_) => Code::H3_NO_ERROR,
        };
        // Every code of RFC 9114 is a small number.
        quinn::VarInt::from_u64(code.value()).unwrap_or(quinn::VarInt::MAX)
    }
}

/// What the requests of one connection share.
struct Http3Client {
    shared: Arc<Shared>,
    visit: Visit,
    credit: Credit,
}

impl Http3Client {
    /// Answers the requests of the connection, until it ends or the stub takes no more.
    async fn serve(
        self: &Arc<Self>,
        http3: &mut Http3Connection,
        quic: &quinn::Connection,
        latest: &Latest,
        mut leaving: Leaving,
    ) -> Result<(), Http3Error> {
        quic.set_max_concurrent_bi_streams(STRANGERS_REQUESTS.into());
        let requests = TaskTracker::new();
        let mut trusted = false;
        loop {
            tokio::select! {
                accepted = http3.accept() => match accepted {
                    Ok(Some(resolver)) => {
                        let cancelled = latest.take();
                        requests.spawn(self.clone().answer(resolver, cancelled));
                    }
                    Ok(None) => return Ok(()),
                    Err(error) if error.is_h3_no_error() => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
                _ = self.visit.connection().authenticated.wait(), if !trusted => {
                    trusted = true;
                    let requests = self.shared.live().limits.requests_per_connection.min(MAX_REQUESTS);
                    quic.set_max_concurrent_bi_streams(requests.into());
                    quic.set_receive_window(RECEIVE_WINDOW.into());
                }
                leave = &mut leaving => match leave {
                    Leave::Stranger => return Err(Http3Error::Stranger),
                    Leave::Closing => break,
                },
                () = self.credit.used_up.cancelled() => return Err(Http3Error::RapidReset),
            }
        }
        requests.close();
        // The number of the next request: none from there on was looked at (RFC 9114, section 5.2).
        http3.shutdown(1).await?;
        loop {
            tokio::select! {
                accepted = http3.accept() => match accepted {
                    Ok(Some(mut late)) => late.frame_stream.reset(Code::H3_REQUEST_REJECTED.value()),
                    _ => break,
                },
                () = requests.wait() => break,
            }
        }
        // Closing the connection at once could overtake the last answers.
        let _ = timeout(LAST_WORDS, quic.closed()).await;
        Ok(())
    }

    /// Answers the request on one stream. Dropped on the way it breaks off whatever it has begun.
    async fn answer(self: Arc<Self>, resolver: Resolver, cancelled: Option<Cancelled>) {
        let mut cancelled = cancelled.unwrap_or_else(|| Box::pin(std::future::pending()));
        let answering = async {
            let patience = self.shared.live().limits.handshake();
            let (request, stream) =
                timeout(patience, begin(resolver)).await.map_err(|_elapsed| Unreadable::TooSlow)??;
            Ok::<_, Unreadable>((stream, self.visit.answer(request).await))
        };
        let answered = tokio::select! {
            answered = answering => answered,
            () = &mut cancelled => return self.credit.draw(),
        };
        let (stream, answer) = match answered {
            Ok(answered) => answered,
            Err(error) => {
                tracing::debug!(address = %self.visit.connection().address, "a request by HTTP/3 is not answered: {error}");
                return self.credit.draw();
            }
        };
        self.credit.give_back();
        tokio::select! {
            sent = send(stream, answer) => if let Err(error) = sent {
                tracing::debug!(address = %self.visit.connection().address, "an answer by HTTP/3 broke off: {error}");
            },
            () = &mut cancelled => {}
        }
    }
}

fn client_connection(shared: &Shared, quic: &quinn::Connection) -> Result<ClientConnection, Http3Error> {
    let chain = presented_chain(quic);
    shared.peers.verify(PeerRole::User, &chain).map_err(Http3Error::NotVouchedFor)?;
    let address = quic.remote_address();
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    Ok(ClientConnection::new(address, requested_server_name(quic), &chain)?)
}

type Http3Connection = h3::server::Connection<QuicConnection, Bytes>;
type Resolver = RequestResolver<QuicConnection, Bytes>;
type AnswerStream = RequestStream<SendStream, Bytes>;

/// Why a request cannot be answered.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("it did not come in time")]
    TooSlow,
    #[error("{0}")]
    Head(#[from] StreamError),
    #[error("{0}")]
    Body(#[from] BrokenBody),
}

/// Reads the head of a request and what may be the beginning of its body.
async fn begin(resolver: Resolver) -> Result<(Request<RequestBody>, AnswerStream), Unreadable> {
    let (head, stream) = resolver.resolve_request().await?;
    let (send, recv) = stream.split();
    // A length that is none is refused by whoever reads the head.
    let length = headers::content_length(head.headers()).ok().flatten();
    let body = RequestBody::begin(recv, length).await?;
    Ok((head.map(|()| body), send))
}

/// Why an answer does not come to its end.
#[derive(Debug, thiserror::Error)]
enum BrokenOff {
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("{0}")]
    Answer(#[from] BrokenAnswer),
}

/// Sends an answer as it comes. On an error the stream is dropped, and so broken off.
async fn send(mut stream: AnswerStream, answer: Response<AnswerBody>) -> Result<(), BrokenOff> {
    let (head, mut body) = answer.into_parts();
    stream.send_response(Response::from_parts(head, ())).await?;
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => stream.send_data(data).await?,
            Err(other) => {
                if let Ok(trailers) = other.into_trailers() {
                    stream.send_trailers(trailers).await?;
                }
            }
        }
    }
    Ok(stream.finish().await?)
}

/// How many requests a client may still give up before their answer begins.
#[derive(Debug)]
struct Credit {
    left: AtomicUsize,
    used_up: CancellationToken,
}

impl Default for Credit {
    fn default() -> Self {
        Self { left: AtomicUsize::new(UNANSWERED), used_up: CancellationToken::new() }
    }
}

impl Credit {
    fn draw(&self) {
        let drawn = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if drawn.is_err() {
            self.used_up.cancel();
        }
    }

    fn give_back(&self) {
        // Full already where it fails.
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left < UNANSWERED).then_some(left + 1));
    }
}
