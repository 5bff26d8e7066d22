//! `qtunnel top`: what the dashboard shows, in a terminal.

mod app;
mod rows;
mod view;

use std::io::{IsTerminal, stdin, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::args::TopArgs;
use super::{CommandResult, shutdown_on_signal};
use crate::stub::StubConfig;
use crate::stub::admin::{AdminClient, StatusError};
use app::{App, Next, Snapshot};

/// How often the stub is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How long the keyboard is waited for before looking whether that is still wanted.
const KEYBOARD_PATIENCE: Duration = Duration::from_millis(100);

/// Shows it until `q`.
pub async fn run(args: TopArgs) -> CommandResult {
    let config = StubConfig::load(&args.config)?;
    if !stdin().is_terminal() || !stdout().is_terminal() {
        bail!("`qtunnel top` needs a terminal; `qtunnel status --output json` is for scripts");
    }
    let client = AdminClient::new(&config.admin_socket());
    // Before the screen is taken: that no stub runs is said where it can be read.
    let first = snapshot(&client).await?;
    let stop = shutdown_on_signal()?;
    let screen = Screen::take().context("cannot use the terminal")?;
    let shown = show(screen, App::new(first), client, &stop).await;
    stop.cancel();
    shown.context("cannot use the terminal")?;
    Ok(ExitCode::SUCCESS)
}

/// The terminal in raw mode with a screen of its own, given back when dropped and when the program panics.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> std::io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn show(mut screen: Screen, mut app: App, client: AdminClient, stop: &CancellationToken) -> std::io::Result<()> {
    let (news, mut latest) = watch::channel(None);
    let asking = tokio::spawn(ask(client, news));
    let mut keys = keyboard(stop.clone());
    loop {
        screen.0.draw(|frame| view::draw(frame, &mut app))?;
        tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = latest.changed() => {
                if let Some(result) = latest.borrow_and_update().clone() {
                    app.heard(result);
                }
            }
            key = keys.recv() => match key {
                Some(Ok(event)) if app.handle(&event) == Next::Quit => break,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => break,
            },
        }
    }
    asking.abort();
    Ok(())
}

/// Asks the stub for ever.
async fn ask(client: AdminClient, news: watch::Sender<Option<Result<Snapshot, String>>>) {
    let mut ticks = interval(EVERY);
    loop {
        ticks.tick().await;
        let result = snapshot(&client).await.map_err(|error| error.to_string());
        news.send_replace(Some(result));
    }
}

async fn snapshot(client: &AdminClient) -> Result<Snapshot, StatusError> {
    let (status, requests, incidents, series) =
        tokio::try_join!(client.status(), client.requests(), client.incidents(), client.series())?;
    Ok(Snapshot { status, requests, incidents, series })
}

/// What is typed, and changes of the size, until `stop`. The terminal can only be waited for by a thread.
fn keyboard(stop: CancellationToken) -> mpsc::Receiver<std::io::Result<Event>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !stop.is_cancelled() {
            let event = match event::poll(KEYBOARD_PATIENCE) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let failed = event.is_err();
            if sender.blocking_send(event).is_err() || failed {
                break;
            }
        }
    });
    receiver
}
