//! The layouts that kernel and agent share, as committed in `layout.txt`.
//!
//! Pins outlive the agent, so a layout may change only together with `LAYOUT_VERSION`. Capacities
//! are written too, for people and for `cargo xtask bpf`, but may change freely. After a new
//! version: `cargo xtask layout --bless`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use agent_common::maps::{
    CONNTRACK_CAPACITY, LAYOUT_VERSION, MAPS, MapKind, MapSpec, TYPES, TypeLayout,
};

/// What to think of a snapshot beside the layouts of today.
#[derive(Debug, Eq, PartialEq)]
enum Judgement {
    Same,
    /// Only what may change freely differs, or the version is new.
    Stale,
    /// The layout changed under the same version.
    Broken,
}

fn judge(saved: &str, today: &str) -> Judgement {
    let version = |text: &str| text.lines().next().map(str::to_owned);
    if saved == today {
        Judgement::Same
    } else if version(saved) != version(today) || shape(saved) == shape(today) {
        Judgement::Stale
    } else {
        Judgement::Broken
    }
}

/// The snapshot without what may change freely.
fn shape(text: &str) -> String {
    let words = |line: &str| {
        let kept = line.split(' ').filter(|word| !word.contains("capacity="));
        kept.collect::<Vec<_>>().join(" ")
    };
    text.lines().map(words).collect::<Vec<_>>().join("\n")
}

fn render() -> String {
    let mut text = format!("version {LAYOUT_VERSION}\n\n");
    for map in MAPS {
        writeln!(text, "{}", render_map(map)).expect("a string takes everything");
    }
    for ty in TYPES.iter().chain(agent_common::event::TYPES) {
        text.push_str(&render_type(ty));
    }
    text
}

fn render_map(map: &MapSpec) -> String {
    let inner = match map.kind {
        MapKind::ArrayOfLruHash => format!(" inner_capacity={CONNTRACK_CAPACITY}"),
        MapKind::Array
        | MapKind::MappedArray
        | MapKind::PerCpuArray
        | MapKind::Hash
        | MapKind::LruHash
        | MapKind::LpmTrie
        | MapKind::RingBuffer => String::new(),
    };
    format!(
        "map {} kind={:?} key={} key_bytes={} value={} value_bytes={} capacity={}{inner}",
        map.name, map.kind, map.key, map.key_size, map.value, map.value_size, map.capacity,
    )
}

fn render_type(ty: &TypeLayout) -> String {
    let mut text = format!("\ntype {} bytes={}\n", ty.name, ty.size);
    for (field, offset) in ty.fields {
        writeln!(text, "    {offset:>3} {field}").expect("a string takes everything");
    }
    text
}

#[test]
fn layouts_change_only_with_a_new_version() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("layout.txt");
    let today = render();
    let saved = fs::read_to_string(&path).unwrap_or_default();
    let judgement = judge(&saved, &today);
    assert_ne!(
        judgement,
        Judgement::Broken,
        "a layout in {} changed under version {LAYOUT_VERSION}: raise LAYOUT_VERSION, then run \
         cargo xtask layout --bless. If that version was never released, delete the file and \
         bless.\ntoday:\n{today}",
        path.display()
    );
    if judgement == Judgement::Stale && env::var_os("PICKET_BLESS").is_some() {
        fs::write(&path, today).expect("the snapshot can be written");
        return;
    }
    assert_eq!(
        judgement,
        Judgement::Same,
        "the snapshot is stale: cargo xtask layout --bless"
    );
}

#[test]
fn a_moved_field_under_the_same_version_is_refused() {
    let saved = "version 1\n\nmap A kind=Hash capacity=3\n      4 field\n";
    let moved = saved.replace("4 field", "8 field");
    assert_eq!(judge(saved, &moved), Judgement::Broken);
    assert_eq!(
        judge(saved, &moved.replace("version 1", "version 2")),
        Judgement::Stale
    );
    assert_eq!(judge("", saved), Judgement::Stale);
}

#[test]
fn a_capacity_may_change_without_a_new_version() {
    let saved = "version 1\n\nmap A kind=Hash capacity=3 inner_capacity=4\n";
    let grown = saved.replace("=3", "=5").replace("=4", "=6");
    assert_eq!(judge(saved, &grown), Judgement::Stale);
}

/// What the next version will read is what this one writes.
#[cfg(not(feature = "next-layout"))]
#[test]
fn the_layout_before_the_next_one_is_todays() {
    use agent_common::maps::before;

    assert_eq!(before::VERSION, LAYOUT_VERSION);
    for frozen in before::TYPES {
        let today = TYPES.iter().find(|today| today.name == frozen.name);
        let today = today.expect("a type of today");
        assert_eq!(frozen.size, today.size, "{}", frozen.name);
        let named = frozen.fields.iter().filter(|(field, _)| *field != "rest");
        for field in named {
            assert!(today.fields.contains(field), "{}: {field:?}", frozen.name);
        }
    }
    let maps = [
        before::ENDPOINTS,
        before::ENDPOINTS_COLLIDING,
        before::CONFIGS,
        before::CONNTRACK,
        before::PENDING,
    ];
    for frozen in maps {
        let today = MAPS.iter().find(|today| today.name == frozen.name);
        let today = today.expect("a map of today");
        let whole = |spec: &MapSpec| MapSpec {
            capacity: 0,
            ..*spec
        };
        assert_eq!(render_map(&whole(frozen)), render_map(&whole(today)));
    }
}
