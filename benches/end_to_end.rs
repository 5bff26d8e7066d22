//! client -> stub -> agent -> sample API over loopback, each beside the same request made directly.
//!
//! Criterion measures the time of one; a table at the end shows rates, tails, CPU and ratios. Both ends and everything
//! between them share this machine's cores, so CPU per request says more than time does.

mod support;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use http_body_util::BodyExt;
use support::{Chain, Connection, Load, SharedConnection, Target, Tunnel, connections, cpu, small_gets};
use tokio::runtime::Runtime;

const BULK: u64 = 256 << 20;
const FOLLOWERS: usize = 1000;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

fn small_get(criterion: &mut Criterion) {
    let runtime = runtime();
    let tunnel = runtime.block_on(Tunnel::start(Chain::Bare));
    for in_flight in [1, 64] {
        let mut group = criterion.benchmark_group(format!("small GET, {in_flight} in flight"));
        group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(5));
        for (name, target) in [("direct", &tunnel.direct), ("tunnel", &tunnel.through)] {
            let mut open = Some(runtime.block_on(connections(target, in_flight)));
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|count| {
                    let (load, kept) = runtime.block_on(small_gets(open.take().unwrap(), count as usize));
                    open = Some(kept);
                    load.elapsed
                });
            });
        }
    }
}

fn bulk(criterion: &mut Criterion) {
    let runtime = runtime();
    let tunnel = runtime.block_on(Tunnel::start(Chain::Bare));
    let mut group = criterion.benchmark_group("256 MiB body");
    group.throughput(Throughput::Bytes(BULK)).sample_size(10).measurement_time(Duration::from_secs(10));
    for (name, target) in [("direct", &tunnel.direct), ("tunnel", &tunnel.through)] {
        let mut connection = runtime.block_on(Connection::open(target));
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(download(&mut connection)));
        });
    }
}

async fn download(connection: &mut Connection) {
    assert_eq!(connection.fetch(&format!("/sample/bytes?n={BULK}")).await, BULK);
}

/// One table with everything, CPU too.
fn report() {
    let runtime = runtime();
    let tunnel = runtime.block_on(Tunnel::start(Chain::Bare));
    println!("\n| what | direct | tunnel | ratio |\n| --- | --- | --- | --- |");
    for (in_flight, count) in [(1, 5_000), (64, 60_000)] {
        for (protocol, gets) in [("HTTP/2", gets_over_http2 as Gets), ("HTTP/1.1", gets_over_http1)] {
            let [direct, through] =
                [&tunnel.direct, &tunnel.through].map(|target| gets(&runtime, target, in_flight, count));
            let rate = |load: &Load| count as f64 / load.elapsed.as_secs_f64();
            row(&format!("small GET, {in_flight} in flight, {protocol}: requests/s"), rate(&direct), rate(&through));
            let cpu = |load: &Load| load.cpu.as_secs_f64() * 1e6 / count as f64;
            row("the same: CPU per request, us", cpu(&direct), cpu(&through));
            for percent in [50, 99] {
                let latency = |load: &Load| load.percentile(percent).as_secs_f64() * 1e6;
                row(&format!("the same: p{percent}, us"), latency(&direct), latency(&through));
            }
        }
    }
    let [direct, through] = [&tunnel.direct, &tunnel.through].map(|target| bulk_once(&runtime, target));
    row("256 MiB body: Gbit/s", direct.0, through.0);
    row("the same: CPU s/GiB", direct.1, through.1);
    let [direct, through] = [&tunnel.direct, &tunnel.through].map(|target| beside_followers(&runtime, target));
    row(&format!("small GET beside {FOLLOWERS} `logs -f`: p50, us"), direct.0, through.0);
    row("the same: p99, us", direct.1, through.1);
    drop(tunnel);
    report_chain();
}

/// How often each is measured in turns; the table shows the medians.
const ROUNDS: usize = 5;

/// What authentication by token, authorization by policy and the audit log cost beside none of them.
fn report_chain() {
    const COUNT: usize = 20_000;
    let runtime = runtime();
    let chains = [Chain::Bare, Chain::Whole].map(|chain| runtime.block_on(Tunnel::start(chain)));
    println!("\n| what | bare chain | whole chain | ratio |\n| --- | --- | --- | --- |");
    for (protocol, gets) in [("HTTP/2", gets_over_http2 as Gets), ("HTTP/1.1", gets_over_http1)] {
        let round = || {
            let measure = |tunnel: &Tunnel| gets(&runtime, &tunnel.through, 64, COUNT).cpu.as_secs_f64();
            chains.each_ref().map(measure)
        };
        let rounds: Vec<_> = (0..ROUNDS).map(|_| round()).collect();
        let [bare, whole] = [0, 1].map(|chain| {
            let mut cpu: Vec<f64> = rounds.iter().map(|round| round[chain] * 1e6 / COUNT as f64).collect();
            cpu.sort_by(f64::total_cmp);
            cpu[ROUNDS / 2]
        });
        row(&format!("small GET, 64 in flight, {protocol}: CPU per request, us"), bare, whole);
    }
}

fn row(what: &str, direct: f64, tunnel: f64) {
    println!("| {what} | {direct:.2} | {tunnel:.2} | {:.2} |", tunnel / direct);
}

type Gets = fn(&Runtime, &Target, usize, usize) -> Load;

/// As kubectl does: everything on one connection.
fn gets_over_http2(runtime: &Runtime, target: &Target, in_flight: usize, count: usize) -> Load {
    runtime.block_on(async {
        let connection = SharedConnection::open(target).await;
        connection.small_gets(in_flight, count / 10).await;
        connection.small_gets(in_flight, count).await
    })
}

fn gets_over_http1(runtime: &Runtime, target: &Target, in_flight: usize, count: usize) -> Load {
    runtime.block_on(async {
        let (_warm_up, open) = small_gets(connections(target, in_flight).await, count / 10).await;
        small_gets(open, count).await.0
    })
}

/// Gbit/s and CPU seconds per GiB.
fn bulk_once(runtime: &Runtime, target: &Target) -> (f64, f64) {
    runtime.block_on(async {
        let mut connection = Connection::open(target).await;
        download(&mut connection).await;
        let (began, cpu_before) = (Instant::now(), cpu::time());
        for _ in 0..4 {
            download(&mut connection).await;
        }
        let bytes = 4.0 * BULK as f64;
        let cpu = (cpu::time() - cpu_before).as_secs_f64();
        (bytes * 8.0 / began.elapsed().as_secs_f64() / 1e9, cpu / (bytes / f64::from(1 << 30)))
    })
}

/// p50 and p99 in microseconds of small GETs while many logs are followed.
fn beside_followers(runtime: &Runtime, target: &Target) -> (f64, f64) {
    runtime.block_on(async {
        let mut followers = Vec::with_capacity(FOLLOWERS);
        for _ in 0..FOLLOWERS {
            let mut connection = Connection::open(target).await;
            let mut body =
                connection.get("/api/v1/namespaces/demo/pods/web/log?container=web&follow=true&tailLines=1").await;
            body.frame().await.unwrap().unwrap();
            followers.push(tokio::spawn(async move {
                let _open = connection;
                while let Some(Ok(_)) = body.frame().await {}
            }));
        }
        let (load, _) = small_gets(connections(target, 4).await, 20_000).await;
        followers.iter().for_each(tokio::task::JoinHandle::abort);
        (load.percentile(50).as_secs_f64() * 1e6, load.percentile(99).as_secs_f64() * 1e6)
    })
}

criterion_group!(benches, small_get, bulk);

fn main() {
    support::run::run(benches, report);
}
