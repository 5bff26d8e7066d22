//! The wire protocol without IO: encoding and decoding.

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::header::{ACCEPT, ACCEPT_ENCODING, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method};
use qtunnel::wire::{Frame, FrameReader, Identity, RequestHead, StreamKind};

fn typical_head() -> Frame {
    let mut headers = HeaderMap::new();
    headers.insert(
        ACCEPT,
        HeaderValue::from_static("application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"),
    );
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(USER_AGENT, HeaderValue::from_static("kubectl/v1.33.1 (linux/amd64) kubernetes/8adc0f0"));
    headers.insert("kubectl-command", HeaderValue::from_static("kubectl get"));
    Frame::RequestHead(Box::new(RequestHead {
        audit_id: "09a49b64-7a3e-4c0f-9d5e-3f1c2b4a5d6e".to_owned(),
        method: Method::GET,
        target: "/api/v1/namespaces/demo/pods?limit=500".parse().unwrap(),
        headers,
        identity: Identity { groups: vec!["devs".to_owned(), "ops".to_owned()], ..Identity::named("alice") },
        requested: None,
        bearer_token: None,
        upgrade: None,
        client_address: Some("192.0.2.7".parse().unwrap()),
    }))
}

fn heads(criterion: &mut Criterion) {
    let head = typical_head();
    let mut group = criterion.benchmark_group("request head");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |bencher| {
        let mut out = BytesMut::with_capacity(4096);
        bencher.iter(|| {
            out.clear();
            head.encode(&mut out).unwrap();
        });
    });
    let mut encoded = BytesMut::new();
    StreamKind::Request.encode(&mut encoded);
    head.encode(&mut encoded).unwrap();
    let encoded = encoded.freeze();
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            let mut reader = FrameReader::for_accepted_stream();
            reader.push(encoded.clone());
            reader.next_frame().unwrap().unwrap()
        });
    });
}

fn bodies(criterion: &mut Criterion) {
    let mut stream = BytesMut::new();
    StreamKind::Request.encode(&mut stream);
    typical_head().encode(&mut stream).unwrap();
    for _ in 0..64 {
        Frame::Data(Bytes::from(vec![7; 16 * 1024])).encode(&mut stream).unwrap();
    }
    let stream = stream.freeze();
    let mut group = criterion.benchmark_group("body of 1 MiB");
    group.throughput(Throughput::Bytes(stream.len() as u64));
    group.bench_function("decode, in pieces of 1200 bytes", |bencher| {
        bencher.iter_batched(
            || stream.clone(),
            |mut stream| {
                let mut reader = FrameReader::for_accepted_stream();
                while !stream.is_empty() {
                    reader.push(stream.split_to(stream.len().min(1200)));
                    while let Some(frame) = reader.next_frame().unwrap() {
                        std::hint::black_box(frame);
                    }
                }
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, heads, bodies);
criterion_main!(benches);
