//! Stubs that keep what they share in Secrets of the sample API.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use super::tunnel::{SampleApi, Stub, StubOptions, init_stub};

/// A client of the sample API, as its administrator.
pub async fn administrator(api: &SampleApi) -> Client {
    let kubeconfig = Kubeconfig::read_from(api.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Starts a stub whose keys are in Secrets, as `kubectl create secret generic qtunnel-stub-keys --from-file=...` puts them there,
/// and not in its directory.
pub async fn start_stub_with_secrets(api: &SampleApi, options: StubOptions) -> Stub {
    let dir = tempfile::tempdir().unwrap();
    init_stub(&dir.path().join("stub"), None).ok();
    let keys = Secret {
        metadata: kube::api::ObjectMeta { name: Some("qtunnel-stub-keys".to_owned()), ..Default::default() },
        data: Some(take_pem_files(&dir.path().join("stub"))),
        ..Secret::default()
    };
    secrets(api).await.create(&PostParams::default(), &keys).await.unwrap();
    let kubeconfig = api.kubeconfig().to_str().unwrap().to_owned();
    let options = options.set("kubernetes", "kubeconfig", kubeconfig).set("store", "kind", "kubernetes").set(
        "store",
        "namespace",
        "default",
    );
    Stub::start_in(dir, &options)
}

/// The Secrets where such stubs keep what they share.
pub async fn secrets(api: &SampleApi) -> Api<Secret> {
    Api::namespaced(administrator(api).await, "default")
}

/// Moves the PEM files of a directory into what a Secret holds.
pub fn take_pem_files(dir: &Path) -> BTreeMap<String, ByteString> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            files.insert(name, ByteString(std::fs::read(&path).unwrap()));
            std::fs::remove_file(&path).unwrap();
        }
    }
    assert_eq!(files.len(), 8);
    files
}
