//! A kubelet whose containers are those of the sample API, for a real API server.

use std::net::SocketAddr;
use std::sync::Arc;

use qtunnel::demo::api::SampleApi;
use rustls::ServerConfig;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The longest head of a request, in bytes.
const LONGEST_HEAD: u64 = 64 << 10;

/// A running kubelet. Dropping it ends it.
pub struct Kubelet {
    /// Where it listens.
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Kubelet {
    /// Starts one with these keys.
    pub fn start(tls: ServerConfig) -> Self {
        let runtime = Runtime::new().unwrap();
        let entered = runtime.enter();
        let (listener, address) = listen();
        let (sample_listener, sample) = listen();
        drop(entered);
        // Without tokens it lets everybody do everything; the API server has decided who may do what.
        runtime.spawn(SampleApi::builder().build().serve(sample_listener, None, CancellationToken::new()));
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                // Either end may go away at any time.
                tokio::spawn(async move { serve(socket, &acceptor, sample).await.ok() });
            }
        });
        Self { address, runtime: Some(runtime) }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // Waiting for it is not allowed in a test that is asynchronous itself.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (TcpListener::from_std(listener).unwrap(), address)
}

/// Passes one request on and then every byte in both directions.
async fn serve(socket: TcpStream, acceptor: &TlsAcceptor, sample: SocketAddr) -> std::io::Result<()> {
    let mut client = BufReader::new(acceptor.accept(socket).await?);
    let head = translated(&read_head(&mut client).await?);
    let mut sample = TcpStream::connect(sample).await?;
    sample.write_all(head.as_bytes()).await?;
    copy_bidirectional(&mut client, &mut sample).await?;
    Ok(())
}

async fn read_head(client: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<String> {
    let (mut head, mut client) = (String::new(), client.take(LONGEST_HEAD));
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// A request for a kubelet as one for an API server (`pkg/kubelet/server/server.go`, `InstallDebuggingHandlers`).
fn translated(head: &str) -> String {
    let (line, fields) = head.split_once("\r\n").unwrap();
    let (method, target) = line.split_once(' ').unwrap();
    let target = target.strip_suffix(" HTTP/1.1").unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut path = path.split('/').skip(1);
    let mut segment = || path.next().unwrap_or_default();
    let (what, namespace, pod, container) = (segment(), segment(), segment(), segment());
    let subresource = match what {
        "containerLogs" => "log",
        "portForward" => "portforward",
        other => other,
    };
    let container = (!container.is_empty()).then(|| format!("container={container}"));
    let query: Vec<_> = query.split('&').map(translated_parameter).map(str::to_owned).chain(container).collect();
    // Whatever is not upgraded is the only request of its connection.
    let close = if fields.to_ascii_lowercase().contains("upgrade:") { "" } else { "Connection: close\r\n" };
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/{subresource}");
    format!("{method} {path}?{} HTTP/1.1\r\n{close}{fields}", query.join("&"))
}

/// (`pkg/apis/core/types.go`, `ExecStdinParam` and its neighbours.)
fn translated_parameter(parameter: &str) -> &str {
    match parameter {
        "input=1" => "stdin=true",
        "output=1" => "stdout=true",
        "error=1" => "stderr=true",
        "tty=1" => "tty=true",
        other => other,
    }
}
