use super::*;
use proptest::prelude::*;

fn info(method: &str, target: &str) -> RequestInfo {
    RequestInfo::new(&method.parse().unwrap(), &RequestPath::parse(target).unwrap()).unwrap()
}

/// The cases of the API server's own `requestinfo_test.go`, as
/// (method, target, verb, group, version, namespace, resource, subresource, name, parts).
#[test]
fn a_resource_request_is_read_as_the_api_server_reads_it() {
    type Case = (
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
    );
    let cases: &[Case] = &[
        ("GET", "/api/v1/namespaces", "list", "", "v1", "", "namespaces", "", "", "namespaces"),
        ("GET", "/api/v1/namespaces/other", "get", "", "v1", "other", "namespaces", "", "other", "namespaces/other"),
        ("GET", "/api/v1/namespaces/other/pods", "list", "", "v1", "other", "pods", "", "", "pods"),
        ("GET", "/api/v1/namespaces/other/pods/foo", "get", "", "v1", "other", "pods", "", "foo", "pods/foo"),
        ("HEAD", "/api/v1/namespaces/other/pods/foo", "get", "", "v1", "other", "pods", "", "foo", "pods/foo"),
        ("GET", "/api/v1/pods", "list", "", "v1", "", "pods", "", "", "pods"),
        ("GET", "/api/v1/pods/", "list", "", "v1", "", "pods", "", "", "pods"),
        ("HEAD", "/api/v1/pods", "list", "", "v1", "", "pods", "", "", "pods"),
        ("GET", "/api/v1/proxy/namespaces/other/pods/foo", "proxy", "", "v1", "other", "pods", "", "foo", "pods/foo"),
        (
            "GET",
            "/api/v1/proxy/namespaces/other/pods/foo/x/y",
            "proxy",
            "",
            "v1",
            "other",
            "pods",
            "",
            "foo",
            "pods/foo/x/y",
        ),
        ("GET", "/api/v1/watch/pods", "watch", "", "v1", "", "pods", "", "", "pods"),
        ("GET", "/api/v1/watch/namespaces/other/pods", "watch", "", "v1", "other", "pods", "", "", "pods"),
        ("GET", "/api/v1/namespaces/other/pods?watch=1", "watch", "", "v1", "other", "pods", "", "", "pods"),
        ("GET", "/api/v1/namespaces/other/pods?watch=0", "list", "", "v1", "other", "pods", "", "", "pods"),
        ("GET", "/api/v1/pods?watch=true", "watch", "", "v1", "", "pods", "", "", "pods"),
        ("GET", "/api/v1/pods?watch=FALSE", "list", "", "v1", "", "pods", "", "", "pods"),
        ("GET", "/api/v1/pods?watch", "watch", "", "v1", "", "pods", "", "", "pods"),
        ("GET", "/api/v1/pods?watch=false&watch=true", "list", "", "v1", "", "pods", "", "", "pods"),
        ("POST", "/api/v1/pods?watch=true", "create", "", "v1", "", "pods", "", "", "pods"),
        (
            "GET",
            "/api/v1/namespaces/other/pods/foo/status",
            "get",
            "",
            "v1",
            "other",
            "pods",
            "status",
            "foo",
            "pods/foo/status",
        ),
        (
            "GET",
            "/api/v1/namespaces/o/pods/foo/proxy/sub",
            "get",
            "",
            "v1",
            "o",
            "pods",
            "proxy",
            "foo",
            "pods/foo/proxy/sub",
        ),
        (
            "PUT",
            "/api/v1/namespaces/o/finalize",
            "update",
            "",
            "v1",
            "o",
            "namespaces",
            "finalize",
            "o",
            "namespaces/o/finalize",
        ),
        (
            "PUT",
            "/api/v1/namespaces/o/status",
            "update",
            "",
            "v1",
            "o",
            "namespaces",
            "status",
            "o",
            "namespaces/o/status",
        ),
        ("PATCH", "/api/v1/namespaces/other/pods/foo", "patch", "", "v1", "other", "pods", "", "foo", "pods/foo"),
        ("DELETE", "/api/v1/namespaces/other/pods/foo", "delete", "", "v1", "other", "pods", "", "foo", "pods/foo"),
        ("POST", "/api/v1/namespaces/other/pods", "create", "", "v1", "other", "pods", "", "", "pods"),
        ("OPTIONS", "/api/v1/namespaces/other/pods", "", "", "v1", "other", "pods", "", "", "pods"),
        ("DELETE", "/api/v1/nodes", "deletecollection", "", "v1", "", "nodes", "", "", "nodes"),
        ("DELETE", "/api/v1/namespaces", "deletecollection", "", "v1", "", "namespaces", "", "", "namespaces"),
        (
            "DELETE",
            "/apis/extensions/v1/namespaces/o/pods",
            "deletecollection",
            "extensions",
            "v1",
            "o",
            "pods",
            "",
            "",
            "pods",
        ),
        (
            "POST",
            "/apis/extensions/v1beta3/namespaces/o/pods",
            "create",
            "extensions",
            "v1beta3",
            "o",
            "pods",
            "",
            "",
            "pods",
        ),
        ("GET", "/api/v1/nodes/n1/proxy/run", "get", "", "v1", "", "nodes", "proxy", "n1", "nodes/n1/proxy/run"),
        (
            "GET",
            "/api/v1/namespaces/d/services/web%3A80/proxy/",
            "get",
            "",
            "v1",
            "d",
            "services",
            "proxy",
            "web:80",
            "services/web:80/proxy",
        ),
    ];
    for &(method, target, verb, group, version, namespace, resource, subresource, name, parts) in cases {
        let info = info(method, target);
        assert!(info.is_resource_request, "{method} {target}");
        assert_eq!(
            (info.verb.as_str(), info.api_group.as_str(), info.api_version.as_str(), info.namespace.as_str()),
            (verb, group, version, namespace),
            "{method} {target}"
        );
        assert_eq!(
            (info.resource.as_str(), info.subresource.as_str(), info.name.as_str(), info.parts.join("/").as_str()),
            (resource, subresource, name, parts),
            "{method} {target}"
        );
        assert_eq!(info.api_prefix, if group.is_empty() { "api" } else { "apis" });
    }
}

#[test]
fn a_path_without_a_resource_keeps_only_path_and_method() {
    for target in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/apis",
        "/apis/batch",
        "/apis/batch/v1",
        "/apis/batch/v1/",
        "/version",
        "/readyz?verbose=",
        "/openapi/v3/api/v1",
        "/badprefix/version/resource",
    ] {
        let info = info("GET", target);
        assert!(!info.is_resource_request, "{target}");
        let path = target.split('?').next().unwrap().to_owned();
        assert_eq!(info, RequestInfo { path, verb: "get".to_owned(), ..RequestInfo::default() });
    }
}

#[test]
fn a_watch_of_nothing_is_an_error() {
    let path = RequestPath::parse("/api/v1/watch/").unwrap();
    assert!(RequestInfo::new(&Method::GET, &path).is_err());
}

#[test]
fn a_field_selector_on_the_name_gives_the_name() {
    for (query, verb, name) in [
        ("", "list", ""),
        ("fieldSelector=metadata.name=n", "list", "n"),
        ("fieldSelector=metadata.name%3Dn&watch=true&allowWatchBookmarks=true", "watch", "n"),
        ("fieldSelector=foo%3Dbar", "list", ""),
        ("fieldSelector=metadata.name%3Dn,foo", "list", ""),
        ("fieldSelector=metadata.name%3Dn,foo&watch=true", "watch", ""),
        ("fieldSelector=metadata.name%3Da%2Fb", "list", ""),
        ("fieldSelector=metadata.name%3D..", "list", ""),
        ("fieldSelector=metadata.name%3Dn&limit=500", "list", "n"),
        ("fieldSelector=metadata.name%3Dn&limit=many", "list", ""),
        ("fieldSelector=metadata.name%3Dn&timeoutSeconds=", "list", ""),
    ] {
        let info = info("GET", &format!("/apis/group/version/resource?{query}"));
        assert_eq!((info.verb.as_str(), info.name.as_str()), (verb, name), "{query}");
    }
    let delete = info("DELETE", "/api/v1/namespaces/d/pods?fieldSelector=metadata.name%3Dn");
    assert_eq!((delete.verb.as_str(), delete.name.as_str()), ("deletecollection", ""));
}

#[test]
fn running_a_command_needs_create_whatever_the_method() {
    for (method, target, verb) in [
        ("GET", "/api/v1/namespaces/demo/pods/web/exec?command=echo&command=hi&container=web&stdout=true", "create"),
        ("POST", "/api/v1/namespaces/demo/pods/web/attach", "create"),
        ("GET", "/api/v1/namespaces/demo/pods/web/portforward", "create"),
        ("GET", "/api/v1/nodes/n1/proxy/run/demo/web", "create"),
        ("DELETE", "/api/v1/nodes/n1/proxy", "create"),
        ("GET", "/api/v1/namespaces/demo/pods/web/proxy/", "get"),
        ("GET", "/api/v1/namespaces/demo/pods/exec", "get"),
        ("GET", "/apis/subresources.example.com/v1/namespaces/demo/vms/x/portforward", "get"),
        ("GET", "/api/v1/namespaces/demo/pods/web/log", "get"),
    ] {
        assert_eq!(info(method, target).effective_verb(), verb, "{method} {target}");
    }
}

#[test]
fn long_running_and_streaming_requests_are_told_apart() {
    for (target, long_running, streaming) in [
        ("/api/v1/pods", false, false),
        ("/api/v1/pods?watch=true", true, true),
        ("/api/v1/watch/pods", true, true),
        ("/api/v1/namespaces/d/pods/p/log", true, false),
        ("/api/v1/namespaces/d/pods/p/log?follow=false", true, false),
        ("/api/v1/namespaces/d/pods/p/log?container=web&follow=true", true, true),
        ("/api/v1/namespaces/d/pods/p/exec", true, true),
        ("/api/v1/namespaces/d/pods/p/attach", true, true),
        ("/api/v1/namespaces/d/pods/p/portforward", true, true),
        ("/api/v1/namespaces/d/services/s/proxy/x", true, true),
        ("/api/v1/namespaces/d/pods/p/status", false, false),
        ("/debug/pprof/profile", true, false),
        ("/openapi/v3?watch=true", false, false),
    ] {
        let info = info("GET", target);
        assert_eq!((info.is_long_running(), info.is_streaming()), (long_running, streaming), "{target}");
    }
}

proptest! {
    #[test]
    fn no_request_panics(method in "[A-Z]{1,8}", target in "/(api|apis|x)?(/(v1|namespaces|pods|watch|proxy|é|%41|a)){0,7}/?(\\?.{0,30})?") {
        if let Ok(path) = RequestPath::parse(&target) {
            let _ = RequestInfo::new(&method.parse().unwrap(), &path);
        }
    }
}
