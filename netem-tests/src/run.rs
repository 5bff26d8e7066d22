//! One measurement from beginning to end: a network, a use of the tunnel, a contender.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clients::Clients;
use crate::contender::Contender;
use crate::interrupt;
use crate::profile::Profile;
use crate::record::{Recorder, Seen};
use crate::scenario::{Event, Happening, Scenario};
use crate::testbed::{PlainTcp, Program, Testbed, Usage};
use crate::tun::{PRIVATE_ADDRESS, TunReport};

/// After all streams are open, until it is measured: congestion controllers have found the link by then.
const WARM_UP: Duration = Duration::from_secs(3);

/// After what is measured, so that requests made in it can be answered.
const AFTERMATH: Duration = Duration::from_secs(3);

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(10);

/// Between two words about how it goes.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The program under test.
    pub program: &'a Program,
    /// The network.
    pub profile: &'a Profile,
    /// The use of the tunnel.
    pub scenario: Scenario,
    /// The carrier.
    pub contender: Contender,
    /// For how long at least.
    pub length: Duration,
    /// Which packets are lost, as far as that can be said where timing is real.
    pub seed: u64,
    /// What is written down besides.
    pub records: Records<'a>,
}

/// What a run writes down besides what is measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Records<'a> {
    /// A file for what passes the stub's device.
    pub capture: Option<&'a Path>,
    /// A directory for what the ends of the tunnel did with QUIC (qlog), `stub` and `agent` in it.
    pub qlog: Option<&'a Path>,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Run {
    /// What clients saw.
    pub seen: Seen,
    /// For how long.
    pub length: Duration,
    /// What happened meanwhile.
    pub events: Vec<Event>,
    /// What the stub used meanwhile.
    pub stub: Usage,
    /// What the agent used meanwhile.
    pub agent: Usage,
    /// What the network did, from the start of the programs on.
    pub network: TunReport,
}

impl Plan<'_> {
    /// Measures. `progress` is told about it every second: how long it has measured, and what was seen.
    ///
    /// # Errors
    /// When the testbed cannot be set up, a program ends, or somebody wants us to stop.
    pub fn run(&self, progress: impl Fn(Duration, &Seen)) -> anyhow::Result<Run> {
        let mut testbed = Testbed::start(self)?;
        let beside = match self.scenario.loads.beside_tcp {
            true => Some(PlainTcp::start(testbed.network().private(), PRIVATE_ADDRESS)?),
            false => None,
        };
        let recorder = Arc::new(Recorder::default());
        let kubeconfig = testbed.kubeconfig();
        let beside_address = beside.as_ref().map(PlainTcp::address);
        let public = testbed.network().public();
        let clients = Clients::start(public, &kubeconfig, self.scenario.loads, beside_address, &recorder)?;
        interrupt::wait(WARM_UP)?;

        let before = (testbed.stub_usage()?, testbed.agent_usage()?);
        let length = self.scenario.length(self.profile, self.length);
        let start = recorder.open_window(length).start;
        let mut events = self.scenario.events(self.profile).into_iter().peekable();
        let mut next_progress = PROGRESS_INTERVAL;
        while start.elapsed() < length {
            if let Some(event) = events.next_if(|event| event.at <= start.elapsed()) {
                happen(&mut testbed, event.what)?;
            }
            if start.elapsed() >= next_progress {
                progress(next_progress, &recorder.seen());
                next_progress += PROGRESS_INTERVAL;
            }
            interrupt::wait(TICK)?;
        }
        let after = (testbed.stub_usage()?, testbed.agent_usage()?);
        let network = testbed.network().report()?;
        interrupt::wait(AFTERMATH)?;
        drop((clients, beside));
        Ok(Run {
            seen: recorder.seen(),
            length,
            events: self.scenario.events(self.profile),
            stub: after.0 - before.0,
            agent: after.1 - before.1,
            network,
        })
    }
}

impl Run {
    /// Whether it says anything about the programs, and not about a machine too busy to emulate the network.
    pub fn is_valid(&self) -> bool {
        self.network.is_valid()
    }
}

fn happen(testbed: &mut Testbed, what: Happening) -> anyhow::Result<()> {
    match what {
        Happening::Network(action) => Ok(testbed.network().control().apply(action)?),
        Happening::StubRestart => testbed.restart_stub(),
    }
}
