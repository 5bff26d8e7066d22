//! One candidate for a Lease, without IO: the algorithm of `k8s.io/client-go/tools/leaderelection/leaderelection.go`.
//!
//! Times that others have written are never compared with a clock here. A Lease counts as held for its duration after this
//! candidate has *seen* it change; so clocks may show different times, but have to run about equally fast.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// How fast leadership changes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long others respect a Lease that they do not see renewed. Whole seconds. Default 15 s.
    pub lease_duration: Duration,
    /// How long the leader goes on without being able to renew. Shorter than `lease_duration`, so that it has stepped down when
    /// somebody else may take over. Default 10 s.
    pub renew_deadline: Duration,
    /// How often the leader renews and the others look. Default 2 s.
    pub retry_period: Duration,
}

/// What a Lease says (`LeaderElectionRecord`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty once it has been released.
    pub holder: String,
    /// How long to respect it.
    pub lease_duration: Duration,
    /// When the holder got it, by the holder's clock. For people.
    pub acquired: Option<Timestamp>,
    /// When it was renewed last, by the holder's clock. Here only its changing counts.
    pub renewed: Option<Timestamp>,
    /// How often it has changed hands.
    pub transitions: i32,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Write this, provided that nobody else has written since the Lease was read.
    Write(Record),
    /// Somebody else holds it: read it again after this long at the latest.
    Wait(Duration),
}

/// One candidate.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    timing: Timing,
    /// The last record that was seen, and when it was seen first.
    observed: Option<(Record, Instant)>,
    leads_until: Option<Instant>,
}

impl Default for Timing {
    fn default() -> Self {
        let [lease_duration, renew_deadline, retry_period] = [15, 10, 2].map(Duration::from_secs);
        Self { lease_duration, renew_deadline, retry_period }
    }
}

impl Candidate {
    /// A candidate of a name that nobody else has, not even the process before this one.
    pub fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, observed: None, leads_until: None }
    }

    /// What to do about a Lease that was read as `seen` (`None`: there is none) at `now`, when the clock on the wall shows
    /// `clock`.
    pub fn step(&mut self, seen: Option<Record>, now: Instant, clock: Timestamp) -> Step {
        let Some(seen) = seen else { return Step::Write(self.record(clock, clock, 0)) };
        let since = match &self.observed {
            Some((observed, since)) if *observed == seen => *since,
            _ => now,
        };
        self.observed = Some((seen.clone(), since));
        if seen.holder == self.identity {
            return Step::Write(self.record(seen.acquired.unwrap_or(clock), clock, seen.transitions));
        }
        // Whatever this candidate thought, it does not lead.
        self.leads_until = None;
        let left = (since + seen.lease_duration).saturating_duration_since(now);
        if !seen.holder.is_empty() && !left.is_zero() {
            return Step::Wait(left.min(self.timing.retry_period));
        }
        Step::Write(self.record(clock, clock, seen.transitions.saturating_add(1)))
    }

    /// `record` of a [`Step`] that was begun at `asked` has been written. The leadership counts from then: the answer may have
    /// been long on its way.
    pub fn written(&mut self, record: Record, asked: Instant) {
        self.leads_until = Some(asked + self.timing.renew_deadline);
        self.observed = Some((record, asked));
    }

    /// Until when it leads unless it renews the Lease; `None` if it does not lead at `now`.
    pub fn leads_until(&self, now: Instant) -> Option<Instant> {
        self.leads_until.filter(|until| now < *until)
    }

    /// Who holds the Lease, as far as is known.
    pub fn leader(&self) -> Option<&str> {
        self.held().map(|record| record.holder.as_str())
    }

    /// Since when the leader holds it, by the leader's clock.
    pub fn led_since(&self) -> Option<Timestamp> {
        self.held()?.acquired
    }

    /// What to write to give the Lease back, if it is this candidate's: the next one need not wait.
    pub fn release(&mut self, clock: Timestamp) -> Option<Record> {
        self.leads_until = None;
        let (observed, _) = self.observed.take().filter(|(record, _)| record.holder == self.identity)?;
        // The API server does not accept a duration of nothing.
        let lease_duration = Duration::from_secs(1);
        Some(Record { holder: String::new(), lease_duration, renewed: Some(clock), ..observed })
    }

    fn held(&self) -> Option<&Record> {
        self.observed.as_ref().map(|(record, _)| record).filter(|record| !record.holder.is_empty())
    }

    fn record(&self, acquired: Timestamp, renewed: Timestamp, transitions: i32) -> Record {
        Record {
            holder: self.identity.clone(),
            lease_duration: self.timing.lease_duration,
            acquired: Some(acquired),
            renewed: Some(renewed),
            transitions,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A Lease at an API server with optimistic concurrency.
    #[derive(Default)]
    struct Api {
        lease: Option<Record>,
        version: u32,
    }

    impl Api {
        fn write(&mut self, record: Record, read_version: u32) -> bool {
            let accepted = read_version == self.version;
            if accepted {
                (self.lease, self.version) = (Some(record), self.version + 1);
            }
            accepted
        }
    }

    /// A candidate whose clock on the wall is off.
    struct Player {
        candidate: Candidate,
        off: SignedDuration,
    }

    impl Player {
        fn new(name: &str, off: SignedDuration) -> Self {
            Self { candidate: Candidate::new(name.to_owned(), Timing::default()), off }
        }

        fn read(&mut self, api: &Api, now: Instant, start: Instant) -> Step {
            let clock = Timestamp::UNIX_EPOCH + SignedDuration::try_from(now - start).unwrap() + self.off;
            self.candidate.step(api.lease.clone(), now, clock)
        }

        fn play(&mut self, api: &mut Api, now: Instant, start: Instant) {
            let version = api.version;
            if let Step::Write(record) = self.read(api, now, start)
                && api.write(record.clone(), version)
            {
                self.candidate.written(record, now);
            }
        }

        fn leads(&self, now: Instant) -> bool {
            self.candidate.leads_until(now).is_some()
        }
    }

    #[test]
    fn of_two_that_race_for_a_new_lease_one_leads() {
        let (mut api, start) = (Api::default(), Instant::now());
        let [mut a, mut b] = ["a", "b"].map(|name| Player::new(name, SignedDuration::ZERO));
        let steps = [&mut a, &mut b].map(|player| player.read(&api, start, start));
        let written = steps.map(|step| match step {
            Step::Write(record) => api.write(record, 0),
            Step::Wait(_) => panic!("there is no lease yet"),
        });
        assert_eq!(written, [true, false]);
        a.candidate.written(api.lease.clone().unwrap(), start);
        b.play(&mut api, start, start);
        assert!(a.leads(start) && !b.leads(start));
        assert_eq!(b.candidate.leader(), Some("a"));
    }

    #[test]
    fn a_clock_that_is_off_changes_nothing() {
        for hours in [-3, 0, 3] {
            let (mut api, start) = (Api::default(), Instant::now());
            let mut a = Player::new("a", SignedDuration::ZERO);
            let mut b = Player::new("b", SignedDuration::from_hours(hours));
            for second in 0..100 {
                let now = start + second * SECOND;
                a.play(&mut api, now, start);
                b.play(&mut api, now, start);
                assert!(a.leads(now) && !b.leads(now), "{hours} h, {second} s");
            }
            // a dies after 99 s; b has seen its last sign of life then.
            for second in 100..120 {
                let now = start + second * SECOND;
                b.play(&mut api, now, start);
                assert_eq!(b.leads(now), second >= 99 + 15, "{hours} h, {second} s");
                assert!(!(a.leads(now) && b.leads(now)));
            }
            assert_eq!(api.lease.as_ref().unwrap().transitions, 1);
            let taken_over = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(114) + b.off;
            assert_eq!(b.candidate.led_since(), Some(taken_over), "renewing changes nothing about it");
        }
    }

    #[test]
    fn a_leader_that_cannot_renew_steps_down_before_another_takes_over() {
        let (mut api, start) = (Api::default(), Instant::now());
        let [mut a, mut b] = ["a", "b"].map(|name| Player::new(name, SignedDuration::ZERO));
        a.play(&mut api, start, start);
        for tenth in 0..200 {
            let now = start + tenth * SECOND / 10;
            b.play(&mut api, now, start);
            assert_eq!(a.leads(now), tenth < 100, "{tenth}");
            assert_eq!(b.leads(now), tenth >= 150, "{tenth}");
        }
        let now = start + 20 * SECOND;
        a.play(&mut api, now, start);
        assert!(!a.leads(now) && b.leads(now));
    }

    #[test]
    fn those_who_wait_look_again_when_the_lease_may_be_free() {
        let (mut api, start) = (Api::default(), Instant::now());
        let [mut a, mut b] = ["a", "b"].map(|name| Player::new(name, SignedDuration::ZERO));
        a.play(&mut api, start, start);
        assert_eq!(b.read(&api, start, start), Step::Wait(2 * SECOND));
        assert_eq!(b.read(&api, start + 14 * SECOND, start), Step::Wait(SECOND));
        assert!(matches!(b.read(&api, start + 15 * SECOND, start), Step::Write(_)));
    }

    #[test]
    fn a_lease_that_was_released_is_free_at_once() {
        let (mut api, start) = (Api::default(), Instant::now());
        let [mut a, mut b] = ["a", "b"].map(|name| Player::new(name, SignedDuration::ZERO));
        a.play(&mut api, start, start);
        b.play(&mut api, start, start);
        assert_eq!(b.candidate.release(Timestamp::UNIX_EPOCH), None);
        let released = a.candidate.release(Timestamp::UNIX_EPOCH).unwrap();
        assert!(!a.leads(start) && released.holder.is_empty());
        b.read(&Api { lease: Some(released.clone()), version: 1 }, start, start);
        assert_eq!((b.candidate.leader(), b.candidate.led_since()), (None, None), "nobody leads");
        assert!(api.write(released, 1));
        b.play(&mut api, start, start);
        assert!(b.leads(start));
    }
}
