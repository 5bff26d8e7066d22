//! A connection to something else than an API server through an agent: here to a service that sends back what it gets.
//!
//! `cargo run --example dial`

mod support;

use qtunnel::agent::ForwardPolicy;
use qtunnel::stub::Stub;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await?;
        let (mut from, mut to) = socket.split();
        tokio::io::copy(&mut from, &mut to).await
    });

    let site = support::Site::new()?;
    let stub = Stub::bind(site.config()?).await?;
    // The last word is the agent's: without this it connects nowhere.
    let allowed = ForwardPolicy { allow: vec![address.parse()?] };
    let tunnel = site.run_with(stub, 1, |agent| agent.forward(allowed.clone())).await?;

    let mut socket = tunnel.stub().dial(&support::cluster(), "tcp", &address).await?;
    socket.write_all(b"through the tunnel").await?;
    socket.shutdown().await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    println!("the service says: {answer}");
    match tunnel.stub().dial(&support::cluster(), "tcp", "127.0.0.1:1").await {
        Err(error) => println!("elsewhere: {error}"),
        Ok(_) => anyhow::bail!("the agent connects where it was not allowed to"),
    }
    tunnel.stop().await
}
