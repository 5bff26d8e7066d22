//! What a peer over QUIC can do that means no good.

use bytes::Bytes;
use tokio::time::timeout;

use super::*;

#[tokio::test]
async fn what_an_agent_keeps_is_bounded_over_all_streams() {
    const WINDOW: usize = 1 << 20;
    const PIECE: usize = 64 << 10;
    let settings =
        QuicSettings { stream_window: WINDOW as u32, dialler_window: 2 * WINDOW as u32, ..QuicSettings::default() };
    let Pair { agent, stub, .. } = pair_with(Carrier::Quic, &settings).await;
    let (mut held, mut taken) = (Vec::new(), 0);
    for _ in 0..8 {
        let (mut sender, answers) = stub.open().await.unwrap();
        // Until nothing more is taken for a while: nobody reads at the other end.
        while taken < 8 * WINDOW {
            let writing = async { sender.write(&mut [Bytes::from(vec![0; PIECE])]).await };
            match timeout(Duration::from_millis(300), writing).await {
                Ok(written) => written.unwrap(),
                Err(_full) => break,
            }
            taken += PIECE;
        }
        held.push((sender, answers));
    }
    assert!((WINDOW..3 * WINDOW).contains(&taken), "{taken} bytes are kept");
    drop((held, agent));
}
