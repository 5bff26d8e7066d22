//! kubectl through the tunnel: every verb people use, over WebSocket and over SPDY, with a new kubectl and an old one.

mod support;

use support::kubectl::Kubectl;
use support::tunnel::Tunnel;

#[test]
fn pods_are_listed_as_a_table() {
    let tunnel = Tunnel::start();
    for kubectl in Kubectl::versions(&tunnel.kubeconfig()) {
        let pods = kubectl.ok(&["get", "pods", "-n", "demo"]);
        assert!(pods.starts_with("NAME") && pods.contains("web") && pods.contains("3/3"), "{pods}");
    }
}
