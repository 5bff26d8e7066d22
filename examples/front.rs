//! Another way in for clients: here a Unix socket, where the kernel says who is at the other end.
//!
//! A front accepts connections and hands requests to its door. It has to be sure who its clients are, or leave that to the
//! stub's authenticator (`Door::let_in`); authorization, limits, audit log, metrics and the end at a stop are the stub's.
//!
//! `cargo run --example front`

mod support;

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use qtunnel::stub::front::{Door, Front, Serving};
use qtunnel::stub::{AnswerBody, Stub, StubHandle};
use qtunnel::wire::Identity;
use tokio::net::{UnixListener, UnixStream};

/// How long a client may take to send the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves everybody who can open the socket.
#[derive(Debug)]
struct UnixSocketFront(UnixListener);

impl Front for UnixSocketFront {
    fn run(self: Box<Self>, door: Door) -> Serving {
        Box::pin(async move {
            while let Ok((socket, _)) = self.0.accept().await {
                door.spawn(serve(socket, door.clone()));
            }
        })
    }
}

async fn serve(socket: UnixStream, door: Door) {
    let Ok(peer) = socket.peer_cred() else { return };
    let (user, stub) = (support::identity(&format!("uid:{}", peer.uid())), door.stub());
    let service = service_fn(move |request| answer(stub.clone(), user.clone(), request));
    let mut serving = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(socket), service)
    );
    tokio::select! {
        _ = serving.as_mut() => return,
        () = door.closing() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
    println!("front: a connection was closed because the stub stops");
}

async fn answer(
    stub: StubHandle,
    user: Identity,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    println!("front: {} asks for {}", user.user, request.uri());
    let answer = stub.request(&support::cluster(), user, request).await;
    Ok(answer.unwrap_or_else(|status| status.into_response().map(AnswerBody::from)))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let site = support::Site::new()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("front.sock");
    let front = UnixSocketFront(UnixListener::bind(&path)?);
    let stub = Stub::builder(site.config()?).front(front).bind().await?;
    let tunnel = site.run(stub).await?;

    let socket = UnixStream::connect(&path).await?;
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    for path in [support::PODS, "/api/../api/v1/secrets"] {
        // The connection may still be busy with the end of the answer before.
        client.ready().await?;
        let response =
            client.send_request(Request::get(path).header("host", "stub").body(Empty::<Bytes>::new())?).await?;
        let (status, body) = (response.status(), response.into_body().collect().await?.to_bytes());
        println!("{path}: {status}, {} bytes", body.len());
    }
    tunnel.stop().await
}
