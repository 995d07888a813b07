use super::*;

fn item(node: usize) -> ItemId {
    ItemId::new(node, 0)
}

fn piece(node: usize, start: u64, end: u64) -> Piece {
    Piece { item: item(node), start, end }
}

/// So many nodes, each with a file of 100 bytes.
fn ledger(nodes: usize) -> Ledger {
    let mut ledger = Ledger::new(nodes);
    for node in 0..nodes {
        let held = &mut ledger.nodes[node];
        (held.answers, held.receives, held.limit) = (true, true, 1000);
        ledger.add(item(node), 100, Spans::default());
    }
    ledger
}

fn start(ledger: &mut Ledger, from: usize, to: Place, bytes: u64) -> (u64, Vec<Piece>) {
    ledger.start(Move { from, to, bytes }).unwrap()
}

fn finish(ledger: &mut Ledger, id: u64, at: Place, pieces: &[Piece]) {
    ledger.landed(id);
    ledger.sent(id);
    for piece in pieces {
        ledger.stored(id, at, *piece);
    }
}

#[test]
fn a_node_is_free_once_all_it_held_is_acknowledged() {
    let mut ledger = ledger(2);
    let (id, pieces) = start(&mut ledger, 0, Place::Repository, 100);
    ledger.landed(id);
    assert!(ledger.freed().is_empty());
    ledger.stored(id, Place::Repository, piece(0, 0, 99));
    ledger.sent(id);
    assert!(ledger.freed().is_empty());
    ledger.stored(id, Place::Repository, piece(0, 99, 100));
    assert_eq!(pieces, [piece(0, 0, 100)]);
    assert_eq!(ledger.freed(), [0]);
    assert!(ledger.freed().is_empty(), "it is said once");
    assert_eq!(ledger.whole(), [item(0)]);
    assert!(ledger.whole().is_empty());
}

#[test]
fn a_file_that_its_node_has_not_confirmed_is_not_whole() {
    let mut ledger = ledger(1);
    let (id, pieces) = start(&mut ledger, 0, Place::Repository, 100);
    ledger.landed(id);
    ledger.stored(id, Place::Repository, pieces[0]);
    assert!(ledger.whole().is_empty() && ledger.freed().is_empty());
    ledger.sent(id);
    assert_eq!(ledger.whole(), [item(0)]);
}

#[test]
fn what_a_collector_held_goes_back_to_where_it_came_from() {
    let mut ledger = ledger(3);
    let to = Place::Node(1);
    let (id, pieces) = start(&mut ledger, 0, to, 100);
    finish(&mut ledger, id, to, &pieces);
    assert_eq!(ledger.freed(), [0]);
    assert_eq!(ledger.held(1), 200);
    // half of it is on its way on
    let (on, pieces) = start(&mut ledger, 1, Place::Repository, 50);
    assert_eq!(pieces, [piece(0, 0, 50)], "what it has of others goes first");
    ledger.stored(on, Place::Repository, piece(0, 0, 20));
    let ended = ledger.lost(1, "it has gone");
    assert_eq!(ended.len(), 1);
    assert_eq!(ledger.nodes[0].holds[&item(0)], Spans::of(20..100));
    assert_eq!(ledger.items[&item(1)].end, Some(End::Failed("it has gone".into())));
    assert_eq!(ledger.free(), 1);
    ledger.freed();
    assert_eq!(ledger.free(), 0, "it holds something again");
    // the one that is left can end it
    for node in [0, 2] {
        let (id, pieces) = start(&mut ledger, node, Place::Repository, 1000);
        finish(&mut ledger, id, Place::Repository, &pieces);
    }
    assert_eq!(ledger.whole(), [item(0), item(2)]);
}

#[test]
fn nothing_is_lost_with_a_node_that_was_free() {
    let mut ledger = ledger(2);
    let (id, pieces) = start(&mut ledger, 0, Place::Node(1), 100);
    finish(&mut ledger, id, Place::Node(1), &pieces);
    ledger.freed();
    assert!(ledger.lost(0, "it has gone").is_empty());
    assert_eq!(ledger.items[&item(0)].end, None);
    let (id, pieces) = start(&mut ledger, 1, Place::Repository, 200);
    finish(&mut ledger, id, Place::Repository, &pieces);
    assert_eq!(ledger.whole(), [item(0), item(1)]);
}

#[test]
fn both_nodes_that_had_a_file_are_lost() {
    let mut ledger = ledger(2);
    let (id, pieces) = start(&mut ledger, 0, Place::Node(1), 100);
    finish(&mut ledger, id, Place::Node(1), &pieces);
    ledger.lost(0, "gone");
    ledger.lost(1, "gone too");
    assert!(ledger.items.values().all(|item| matches!(item.end, Some(End::Failed(_)))));
    assert!(ledger.ended());
}

#[test]
fn a_move_that_breaks_leaves_the_rest_where_it_was() {
    let mut ledger = ledger(2);
    let (id, _) = start(&mut ledger, 0, Place::Node(1), 100);
    ledger.stored(id, Place::Node(1), piece(0, 0, 30));
    ledger.broken(id).unwrap();
    assert_eq!((ledger.held(0), ledger.held(1)), (70, 130));
    // an acknowledgement that comes late is of bytes that somebody else answers for
    let late = ledger.stored(id, Place::Node(1), piece(0, 30, 40));
    assert_eq!(late, Forget::default(), "it has some of that file, and keeps this with it");
    assert_eq!((ledger.held(0), ledger.held(1)), (70, 130));
    ledger.stored(id, Place::Repository, piece(0, 30, 50));
    assert_eq!(ledger.held(0), 50, "what is in the repository need not be sent again");
}

#[test]
fn what_has_moved_on_may_be_forgotten() {
    let mut ledger = ledger(2);
    let (id, pieces) = start(&mut ledger, 0, Place::Node(1), 100);
    assert_eq!(ledger.stored(id, Place::Node(1), pieces[0]), Forget::default(), "its file stays");
    let (id, pieces) = start(&mut ledger, 1, Place::Repository, 60);
    assert_eq!(ledger.stored(id, Place::Repository, pieces[0]).drops, [(1, piece(0, 0, 60))]);
}

#[test]
fn a_failed_file_hinders_nobody() {
    let mut ledger = ledger(2);
    let (id, _) = start(&mut ledger, 0, Place::Node(1), 100);
    ledger.fail(item(0), "it has changed");
    assert_eq!(ledger.held(0), 0);
    assert_eq!(ledger.stored(id, Place::Node(1), piece(0, 0, 10)).drops, [(1, piece(0, 0, 10))]);
    ledger.broken(id);
    assert_eq!(ledger.freed(), [0]);
    assert!(!ledger.ended());
}

#[test]
fn what_was_stored_before_is_not_held() {
    let mut ledger = Ledger::new(1);
    ledger.nodes[0].answers = true;
    ledger.add(item(0), 100, Spans::of(0..100));
    assert_eq!(ledger.freed(), [0]);
    assert_eq!(ledger.whole(), [item(0)]);
}
