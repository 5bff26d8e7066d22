//! `/sample/…`: endpoints that are no Kubernetes, for benchmarks and for proving that nothing leaks.

use std::{sync::atomic::Ordering, time::Duration};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::{
    Shared,
    body::Body,
    request::Query,
    response::{self, Response},
    server::{ApiRequest, ConnectionHandle},
    status::ApiError,
};

/// Longest sleep `/sample/slow` agrees to.
const MAX_SLEEP: Duration = Duration::from_secs(3600);

/// Answers a request below `/sample/`. Errors: 400 without the parameter an endpoint needs, 404 for other paths.
pub(super) async fn answer(
    api: &Shared,
    connection: &ConnectionHandle,
    query: &Query,
    request: &mut ApiRequest,
) -> Result<Response, ApiError> {
    let octets = "application/octet-stream";
    match request.uri().path() {
        "/sample/bytes" => Ok(response::with_body(StatusCode::OK, octets, Body::zeros(number(query, "n")?))),
        "/sample/echo" => Ok(response::with_body(
            StatusCode::OK,
            octets,
            request.body_mut().take().map_or_else(|| Body::whole(""), Body::echo),
        )),
        "/sample/slow" => {
            tokio::time::sleep(Duration::from_millis(number(query, "ms")?).min(MAX_SLEEP)).await;
            Ok(response::text(StatusCode::OK, "done\n"))
        }
        "/sample/redirect" => redirect(query),
        "/sample/abort" => {
            connection.reset_when_done();
            let after = number(query, "after")?;
            Ok(response::with_body(StatusCode::OK, octets, Body::cut_short(after.saturating_add(1 << 20), after)))
        }
        "/sample/requests" => Ok(response::json(StatusCode::OK, &counts(api))),
        "/sample/headers" => Ok(response::json(StatusCode::OK, &seen(request))),
        _ => Err(ApiError::no_such_resource()),
    }
}

fn number(query: &Query, key: &str) -> Result<u64, ApiError> {
    query.number(key).ok_or_else(|| ApiError::bad_request(format!("the query parameter {key} must be a number")))
}

fn redirect(query: &Query) -> Result<Response, ApiError> {
    let to = query.get("to").and_then(|to| HeaderValue::from_str(to).ok());
    let to = to.ok_or_else(|| ApiError::bad_request("the query parameter to must be a URL"))?;
    let mut response = response::text(StatusCode::FOUND, "");
    response.headers_mut().insert(header::LOCATION, to);
    Ok(response)
}

fn counts(api: &Shared) -> Value {
    let counters = &api.counters;
    json!({
        "requests": counters.requests.load(Ordering::Relaxed),
        "openRequests": counters.open_requests.load(Ordering::Relaxed),
        "openConnections": counters.open_connections.load(Ordering::Relaxed),
        "openUpgrades": counters.open_upgrades.load(Ordering::Relaxed),
    })
}

fn seen(request: &ApiRequest) -> Value {
    json!({
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(http::uri::PathAndQuery::as_str),
        "version": format!("{:?}", request.version()),
        "headers": by_name(request.headers()),
    })
}

fn by_name(headers: &HeaderMap) -> Map<String, Value> {
    let values = |name| {
        headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into()).collect::<Vec<Value>>()
    };
    headers.keys().map(|name| (name.to_string(), values(name).into())).collect()
}
