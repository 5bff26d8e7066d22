//! The screen.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table, Tabs};

use super::app::App;
use super::rows::{Column, Tone, View};
use crate::cli::units::{age, bytes, duration, milliseconds};
use crate::stub::activity::Series;
use crate::stub::admin::{Readiness, StubStatus};

/// Draws all of it. Control characters in what came from the network are left out by ratatui.
pub fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let rows = [
        Constraint::Length(1),
        Constraint::Length(4),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ];
    let [title, curves, tabs, table, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(heading(app), title);
    draw_curves(frame, curves, &app.snapshot.series);
    let names = View::ALL.iter().enumerate().map(|(number, view)| format!("{} {}", number + 1, view.title()));
    let selected = Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD | Modifier::REVERSED);
    frame.render_widget(Tabs::new(names).select(app.view as usize).highlight_style(selected).divider(" "), tabs);
    draw_table(frame, table, app);
    frame.render_widget(footer(app), foot);
}

fn heading(app: &App) -> Line<'static> {
    let status = &app.snapshot.status;
    let agents = status.clusters.iter().map(|cluster| cluster.agents.len()).sum::<usize>();
    let readiness = match status.readiness {
        Readiness::Ready => status.readiness.to_string().green(),
        Readiness::StandingBy | Readiness::ShuttingDown => status.readiness.to_string().yellow(),
    };
    Line::from(vec![
        " qtunnel top ".bold().reversed().cyan(),
        format!(" {}  ", status.stub).bold(),
        readiness,
        leader(status).into(),
        format!(
            "  clusters {}  agents {agents}  open requests {}  up {}",
            status.clusters.len(),
            app.snapshot.requests.total,
            duration(age(status.started_at))
        )
        .into(),
    ])
}

/// Who leads and since when, if there is an election.
fn leader(status: &StubStatus) -> String {
    let Some(election) = &status.election else { return String::new() };
    let since = election.since.map(|since| format!(" for {}", duration(age(since)))).unwrap_or_default();
    match (&election.leader, election.leads) {
        (_, true) => format!("  leads{since}"),
        (Some(leader), false) => format!("  {leader} leads{since}"),
        (None, false) => "  nobody leads".to_owned(),
    }
}

fn draw_curves(frame: &mut Frame<'_>, area: Rect, series: &Series) {
    let carried: Vec<f32> =
        series.bytes_to_clients.iter().zip(&series.bytes_from_clients).map(|(to, from)| to + from).collect();
    let latency: Vec<f32> = series.p99_ms.iter().map(|value| value.unwrap_or(0.0)).collect();
    let latest = |values: &[f32]| values.last().copied().map_or(0.0, f64::from);
    let known = series.p99_ms.last().copied().flatten();
    let shown = [
        (format!("requests/s {:.1}", latest(&series.requests)), &series.requests, Color::Blue),
        (format!("throughput {}/s", bytes(latest(&carried))), &carried, Color::Green),
        (
            format!("p99 {}", known.map_or_else(|| "-".to_owned(), |value| milliseconds(value.into()))),
            &latency,
            Color::Yellow,
        ),
    ];
    let areas = Layout::horizontal([Constraint::Fill(1); 3]).spacing(2).split(area);
    for ((title, values, colour), area) in shown.into_iter().zip(areas.iter()) {
        let [label, curve] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(*area);
        frame.render_widget(Line::from(title).fg(colour), label);
        // A sparkline takes whole numbers, and shows as many as there is room for.
        let first = values.len().saturating_sub(curve.width.into());
        let data: Vec<u64> = values.iter().skip(first).map(|value| (value * 100.0) as u64).collect();
        frame.render_widget(Sparkline::default().data(data).style(colour), curve);
    }
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, app: &mut App) {
    let (columns, sorting) = (fitting(app.view.columns(), area.width), app.sorting());
    let head = columns.iter().enumerate().map(|(number, column)| {
        let arrow = match (number == sorting.column, sorting.descending) {
            (false, _) => "",
            (true, true) => "↓",
            (true, false) => "↑",
        };
        cell(format!("{}{arrow}", column.title), column)
    });
    let rows = app.rows();
    let count = rows.len();
    let rows = rows.into_iter().map(|row| {
        let cells = row.cells.into_iter().zip(columns).map(|(value, column)| cell(value.text, column));
        Row::new(cells).style(colour_of(row.tone))
    });
    let last = columns.len().saturating_sub(1);
    let widths = columns.iter().enumerate().map(|(number, column)| match number == last && !column.numeric {
        true => Constraint::Min(column.width),
        false => Constraint::Length(column.width),
    });
    let table = Table::new(rows, widths)
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, area, &mut app.selection);
    if count == 0 {
        let nothing = if app.filter.is_empty() { "nothing here" } else { "nothing matches the filter" };
        let below = Rect { y: area.y.saturating_add(1), height: area.height.saturating_sub(1).min(1), ..area };
        frame.render_widget(Paragraph::new(nothing).dim(), below);
    }
}

/// The first columns, as many as there is room for, with a cell between two.
fn fitting(columns: &[Column], width: u16) -> &[Column] {
    let mut used = 0u16;
    let count = columns.iter().take_while(|column| {
        let fits = used.saturating_add(column.width) <= width;
        used = used.saturating_add(column.width + 1);
        fits
    });
    let count = count.count().max(1);
    columns.get(..count).unwrap_or(columns)
}

fn cell(text: String, column: &Column) -> Cell<'static> {
    let alignment = if column.numeric { Alignment::Right } else { Alignment::Left };
    Cell::from(Text::from(text).alignment(alignment))
}

fn colour_of(tone: Tone) -> Style {
    match tone {
        Tone::Good => Style::new(),
        Tone::Warning => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red),
    }
}

fn footer(app: &App) -> Line<'static> {
    if let Some(error) = &app.error {
        return Line::from(format!(" {error} ")).red().reversed();
    }
    if app.typing || !app.filter.is_empty() {
        let cursor = if app.typing { "▏" } else { "   (Esc clears it)" };
        return Line::from(vec!["filter: ".bold(), Span::from(format!("{}{cursor}", app.filter))]);
    }
    Line::from(" Tab/1-4 view  ↑↓ row  s/S sort  r reverse  / filter  q quit").dim()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
    use serde_json::json;

    use super::super::app::{Next, Snapshot};
    use super::*;

    fn snapshot() -> Snapshot {
        let agent = |name: &str, state: &str, rtt: f64| {
            json!({
                "name": name, "address": "192.0.2.7:4433", "carrier": "quic", "software": "qtunnel/1", "authMode": "impersonate",
                "state": state, "suspectForMs": null, "upstreamError": "", "upstreamLatencyMs": 1.5,
                "connectedSince": "2026-01-01T00:00:00Z", "rttMs": rtt, "loss": 0.021, "pathChanges": 0, "openStreams": 2,
                "resumedWith0rtt": name == "a1", "requests": 40, "bytesToClients": 2048, "bytesFromClients": 0,
            })
        };
        let request = |id: u64, user: &str, duration: f64| {
            json!({
                "id": id, "auditId": id.to_string(), "user": user, "requestedUser": null, "source": "192.0.2.9",
                "cluster": "eu", "agent": "a1", "verb": "watch", "resource": "pods", "namespace": "demo", "name": "",
                "since": "2026-01-01T00:00:00Z", "durationMs": duration, "bytesToClient": 1536, "bytesFromClient": 0,
            })
        };
        let status = json!({
            "stub": "s1", "version": "1", "startedAt": "2026-01-01T00:00:00Z", "readiness": "standing-by",
            "election": { "leads": false, "leader": "s2_7", "since": "2026-01-01T00:00:00Z" },
            "clusters": [
                { "id": "eu", "apiServer": "0c5b2f6e-1111", "agents": [agent("a1", "healthy", 12.5), agent("a2", "suspect", 99.0)] },
                { "id": "us", "agents": [] },
            ],
        });
        let requests =
            json!({ "total": 2, "requests": [request(1, "alice", 5000.0), request(2, "\u{1b}[31mbob", 9000.0)] });
        Snapshot {
            status: serde_json::from_value(status).unwrap(),
            requests: serde_json::from_value(requests).unwrap(),
            incidents: Vec::new(),
            series: Series { requests: vec![1.0, 3.5], ..Series::default() },
        }
    }

    fn press(app: &mut App, keys: &str) {
        for key in keys.chars() {
            let code = if key == '\n' { KeyCode::Enter } else { KeyCode::Char(key) };
            assert_eq!(app.handle(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE))), Next::Show);
        }
    }

    fn screen_of(app: &mut App, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, app)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(line).collect()
    }

    fn line_with<'a>(screen: &'a [String], text: &str) -> &'a str {
        screen.iter().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} is not in {screen:#?}"))
    }

    fn position(screen: &[String], text: &str) -> usize {
        screen.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} is not in {screen:#?}"))
    }

    #[test]
    fn clusters_and_agents_are_shown() {
        let mut app = App::new(snapshot());
        let screen = screen_of(&mut app, 160, 20);
        assert!(
            screen[0].contains("s1") && screen[0].contains("clusters 2  agents 2  open requests 2"),
            "{}",
            screen[0]
        );
        assert!(line_with(&screen, "requests/s").contains("requests/s 3.5"));
        assert!(screen[0].contains("standing by  s2_7 leads for "), "{}", screen[0]);
        let cluster = line_with(&screen, "eu ");
        assert!(cluster.contains("degraded") && cluster.contains("0c5b2f6e-1111"), "{cluster}");
        assert!(line_with(&screen, "us ").contains("no agent"));
        press(&mut app, "2");
        let screen = screen_of(&mut app, 160, 20);
        let agent = line_with(&screen, "a1 ");
        for text in ["healthy", "quic, 0-RTT", "192.0.2.7:4433", "12.5 ms", "2.1%", "2.0 KiB"] {
            assert!(agent.contains(text), "{text} in {agent}");
        }
    }

    #[test]
    fn requests_are_sorted_reversed_and_filtered() {
        let mut app = App::new(snapshot());
        press(&mut app, "3");
        let screen = screen_of(&mut app, 160, 20);
        assert!(position(&screen, "bob") < position(&screen, "alice"), "the longest comes first");
        press(&mut app, "r");
        let screen = screen_of(&mut app, 160, 20);
        assert!(position(&screen, "alice") < position(&screen, "bob"));
        press(&mut app, "/ALI\n");
        let screen = screen_of(&mut app, 160, 20);
        assert!(!screen.iter().any(|line| line.contains("bob")), "{screen:#?}");
        assert!(line_with(&screen, "filter: ").contains("ALI"));
        press(&mut app, "/x\n");
        line_with(&screen_of(&mut app, 160, 20), "nothing matches the filter");
    }

    #[test]
    fn a_name_cannot_speak_to_the_terminal() {
        let mut app = App::new(snapshot());
        press(&mut app, "3");
        let screen = screen_of(&mut app, 160, 20);
        assert!(!screen.iter().any(|line| line.contains('\u{1b}')), "{screen:#?}");
        line_with(&screen, "[31mbob");
    }

    #[test]
    fn a_stub_that_does_not_answer_is_said_and_what_was_known_stays() {
        let mut app = App::new(snapshot());
        app.heard(Err("no stub answers".to_owned()));
        let screen = screen_of(&mut app, 160, 20);
        line_with(&screen, "no stub answers");
        line_with(&screen, "degraded");
        app.heard(Ok(snapshot()));
        assert_eq!(app.error, None);
    }

    #[test]
    fn a_narrow_terminal_shows_the_columns_that_fit_whole() {
        let mut app = App::new(snapshot());
        press(&mut app, "3");
        let screen = screen_of(&mut app, 80, 20);
        let head = line_with(&screen, "USER");
        assert!(head.contains("FOR↓") && !head.contains("CLIENT"), "{head}");
        assert!(line_with(&screen, "alice").contains("5.0s"));
    }

    #[test]
    fn no_screen_is_too_small() {
        let mut app = App::new(snapshot());
        for (width, height) in [(1, 1), (10, 3), (40, 8), (300, 100)] {
            for view in ["1", "2", "3", "4"] {
                press(&mut app, view);
                screen_of(&mut app, width, height);
            }
        }
    }

    #[test]
    fn q_and_control_c_quit_but_not_out_of_the_filter() {
        let mut app = App::new(snapshot());
        let control_c = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        press(&mut app, "/q\n");
        assert_eq!(app.filter, "q");
        let q = Event::Key(KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE));
        assert_eq!(app.handle(&q), Next::Quit);
        assert_eq!(app.handle(&control_c), Next::Quit);
    }
}
