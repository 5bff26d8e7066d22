//! Another way in for clients: here a Unix socket, where the kernel says who is at the other end.
//!
//! A front of one's own is whatever calls `StubHandle::request`: it has to be sure who its clients are, and everything else,
//! authorization, limits, audit log and metrics among it, is the stub's.
//!
//! `cargo run --example front`

mod support;

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use qtunnel::stub::{AnswerBody, Stub, StubHandle};
use qtunnel::wire::Identity;
use tokio::net::{UnixListener, UnixStream};

/// Serves everybody who can open the socket.
async fn serve(listener: UnixListener, stub: StubHandle) -> std::io::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        let user = support::identity(&format!("uid:{}", socket.peer_cred()?.uid()));
        let stub = stub.clone();
        let service = service_fn(move |request| answer(stub.clone(), user.clone(), request));
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(socket), service);
        tokio::spawn(serving);
    }
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
    let stub = Stub::bind(site.config()?).await?;
    let tunnel = site.run(stub).await?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("front.sock");
    let front = tokio::spawn(serve(UnixListener::bind(&path)?, tunnel.stub().clone()));

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
    drop(client);
    front.abort();
    tunnel.stop().await
}
