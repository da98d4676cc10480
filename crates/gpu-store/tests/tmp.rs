#![allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::allow_attributes)]
#[path = "store/examples.rs"]
#[allow(dead_code)]
mod examples;
use examples::*;
use gpu_store::*;
use std::time::Instant;

#[test]
fn timing() {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().join("s.redb");
    let s = RedbStore::open(&p, store_id()).unwrap();
    for rev in 1..=101u64 {
        let mut b = Batch::new(counters(rev));
        b.events = (0..1000).map(|n| event(rev, n)).collect();
        let t = Instant::now();
        s.commit(&b).unwrap();
        if rev % 20 == 0 { println!("1000 events: {:?}", t.elapsed()); }
    }
    let mut worst = std::time::Duration::ZERO; let t = Instant::now();
    for rev in 200..1200u64 {
        let l = lease(rev);
        let mut b = Batch::new(counters(rev));
        b.leases = vec![&l];
        b.events = vec![event(rev, 0)];
        let t = Instant::now();
        s.commit(&b).unwrap();
        worst = worst.max(t.elapsed());
    }
    println!("1000 commits: {:?} worst {worst:?}", t.elapsed());
    let t = Instant::now();
    let x = s.load().unwrap();
    println!("load {} leases: {:?}", x.rows.unwrap().leases.len(), t.elapsed());
    let t = Instant::now();
    drop(s);
    println!("close {:?} len {}", t.elapsed(), std::fs::metadata(&p).unwrap().len());
    let t = Instant::now();
    let s = RedbStore::open(&p, store_id()).unwrap();
    println!("open clean {:?}", t.elapsed());
    let q = d.path().join("q.redb");
    std::fs::copy(&p, &q).unwrap();
    let t = Instant::now();
    let z = RedbStore::open(&q, store_id()).unwrap();
    println!("open unclean {:?}", t.elapsed());
    drop(z); drop(s);
    let t = Instant::now();
    let z = RedbStore::open_read_only(&q).unwrap();
    println!("snapshot {:?}", t.elapsed());
    drop(z);
}

#[test]
fn flips() {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().join("s.redb");
    let s = RedbStore::open(&p, store_id()).unwrap();
    let l = all_leases();
    s.commit(&full_batch(&l)).unwrap();
    let one = s.load().unwrap();
    s.commit(&Batch::new(counters(18))).unwrap();
    let two = s.load().unwrap();
    let q = d.path().join("q.redb");
    std::fs::copy(&p, &q).unwrap();
    drop(s);
    for file in [&p, &q] {
        let whole = std::fs::read(file).unwrap();
        let used: Vec<usize> = (0..whole.len()).filter(|&i| whole[i] != 0).collect();
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for (k, &at) in used.iter().enumerate() {
            if at > 4096 && k % 17 != 0 { continue }
            let mut b = whole.clone();
            b[at] ^= 0x55;
            let r = d.path().join("r.redb");
            std::fs::write(&r, b).unwrap();
            for ro in [true, false] {
            let res = std::panic::catch_unwind(|| {
                let got = if ro { RedbStore::open_read_only(&r).map(|s| s.load()) } else { RedbStore::open(&r, store_id()).map(|s| s.load()) };
                match got {
                    Ok(Ok(x)) if x == two => "same".to_string(),
                    Ok(Ok(x)) if x == one => format!("one back"),
                    Ok(Ok(_)) => format!("DIFFERENT at {at}"),
                    Ok(Err(e)) => format!("read error {e}"),
                    Err(e) => { let t = e.to_string(); t[t.find('`').unwrap_or(0)..].replace(r.to_str().unwrap(), "F").chars().take(60).collect() }
                }
            }).unwrap_or_else(|_| format!("PANIC at {at}"));
            *counts.entry(format!("ro={ro} {res}")).or_default() += 1;
            }
        }
        println!("{file:?} {} {counts:#?}", used.len());
    }
}
