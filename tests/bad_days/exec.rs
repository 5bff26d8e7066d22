//! How an upgraded connection ends. kubectl over SPDY takes every clean end for success, so only the API server's own clean
//! end may become one.

use super::support::http1::{End, within};
use super::support::scene::Scene;
use super::support::scripted_upstream::UpstreamConnection;
use super::support::user::{Http1, User};
use super::{EXEC, SPDY, SWITCHED};

/// Opens an exec and waits for its `prompt`.
pub async fn open_exec(user: &User, prompt: &str) -> Http1 {
    let mut client = user.connect().await;
    client.write(&user.request("POST", EXEC, &SPDY)).await.expect("a request is sent");
    let head = within("the 101", client.head()).await.expect("an answer").expect("an answer");
    assert_eq!(head.status(), 101, "{head:?}");
    let came = within("the prompt", client.exactly(prompt.len())).await.expect("the prompt");
    assert_eq!(came, prompt.as_bytes());
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_that_the_api_server_breaks_off_ends_without_a_clean_end() {
    let scene = Scene::start(|_head, mut connection: UpstreamConnection| async move {
        connection.say([SWITCHED, "$ "].concat()).await;
        assert_eq!(within("a command", connection.wire.exactly(4)).await.expect("a command"), b"exit");
        connection.reset();
        None
    })
    .await;
    let mut client = open_exec(&scene.user, "$ ").await;
    client.write(b"exit").await.expect("a command is sent");
    let (rest, end) = within("the end", client.rest()).await;
    assert!(rest.is_empty() && end.is_aborted(), "{end:?} after {rest:?}");
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_that_the_api_server_ends_ends_cleanly_with_every_byte() {
    let scene = Scene::start(|_head, mut connection: UpstreamConnection| async move {
        connection.say([SWITCHED, "$ "].concat()).await;
        connection.say(vec![7; 1 << 20]).await;
        connection.wire.finish().await.expect("the end is sent");
        assert_eq!(within("the client's end", connection.wire.rest()).await, (Vec::new(), End::Clean));
        None
    })
    .await;
    let mut client = open_exec(&scene.user, "$ ").await;
    let (rest, end) = within("the end", client.rest()).await;
    assert_eq!((rest.len(), end), (1 << 20, End::Clean));
    client.finish().await.expect("the end is sent");
    scene.wait_until_settled();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_input_leaves_the_output_open() {
    let scene = Scene::start(|_head, mut connection: UpstreamConnection| async move {
        connection.say([SWITCHED, "$ "].concat()).await;
        let (input, end) = within("the end of the input", connection.wire.rest()).await;
        assert_eq!((input.len(), end), (1 << 20, End::Clean));
        connection.say("the sum of it").await;
        None
    })
    .await;
    let mut client = open_exec(&scene.user, "$ ").await;
    client.write(&vec![7; 1 << 20]).await.expect("input is sent");
    client.finish().await.expect("the end is sent");
    assert_eq!(within("the output", client.rest()).await, (b"the sum of it".to_vec(), End::Clean));
    scene.wait_until_settled();
}
