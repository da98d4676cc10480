//! Files behind links and in directories that come, go and are replaced.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use gpu_watch::Event;

use crate::rig::{Rig, words};

on_both_backends! {
    fn swapped_data_directories_are_one_change_each(rig: Rig) {
        let names = ["default.toml", "50.toml"];
        rig.lay_out_generations(&names);
        rig.start();
        for n in 1..=5 {
            rig.swap_generation(&n.to_string(), &names);
            fs::remove_dir_all(rig.path(&format!("..generation-{}", n - 1))).expect("removed");
            assert_eq!(rig.changed(), format!("default.toml=d{n} 50.toml=5{n}"));
        }
        assert_eq!(rig.counters().changed, 5);
    }

    fn a_link_out_of_the_directory_is_followed_and_retargeted(rig: Rig) {
        let (a, b) = (rig.top().join("a"), rig.top().join("b"));
        fs::write(&a, "a1").expect("a file");
        fs::write(&b, "b1").expect("a file");
        rig.remove("default.toml");
        symlink(&a, rig.path("default.toml")).expect("a link");
        rig.start();
        fs::write(&a, "a2").expect("a file");
        assert_eq!(rig.changed(), "default.toml=a2");
        symlink(&b, rig.path("new")).expect("a link");
        rig.rename("new", "default.toml");
        assert_eq!(rig.changed(), "default.toml=b1");
        fs::write(&b, "b2").expect("a file");
        assert_eq!(rig.changed(), "default.toml=b2");
    }

    fn a_root_that_is_a_link_is_retargeted(rig: Rig) {
        for name in ["v1", "v2"] {
            fs::create_dir(rig.top().join(name)).expect("a directory");
            fs::write(rig.top().join(name).join("default.toml"), name).expect("a file");
        }
        symlink("v1", rig.top().join("current")).expect("a link");
        let mut config = rig.config();
        config.roots = vec![rig.top().join("current")];
        rig.start_with(&config);
        symlink("v2", rig.top().join("next")).expect("a link");
        fs::rename(rig.top().join("next"), rig.top().join("current")).expect("a rename");
        assert_eq!(rig.changed(), "default.toml=v2");
        fs::write(rig.top().join("v1/default.toml"), "old").expect("a file");
        fs::write(rig.top().join("v2/default.toml"), "new").expect("a file");
        assert_eq!(rig.changed(), "default.toml=new");
    }

    fn a_link_in_the_middle_of_the_way_is_retargeted(rig: Rig) {
        let worktree = |rig: &Rig, name: &str| {
            let policies = rig.top().join(".worktrees").join(name).join("policies");
            fs::create_dir_all(&policies).expect("a directory");
            fs::write(policies.join("default.toml"), name).expect("a file");
            symlink(format!(".worktrees/{name}"), rig.top().join("next")).expect("a link");
            fs::rename(rig.top().join("next"), rig.top().join("current")).expect("a rename");
        };
        worktree(&rig, "a");
        let mut config = rig.config();
        config.roots = vec![rig.top().join("current/policies")];
        rig.start_with(&config);
        for (old, new) in [("a", "b"), ("b", "c"), ("c", "d")] {
            worktree(&rig, new);
            fs::remove_dir_all(rig.top().join(".worktrees").join(old)).expect("removed");
            assert_eq!(rig.changed(), format!("default.toml={new}"));
        }
        fs::write(rig.top().join("current/policies/default.toml"), "edited").expect("a file");
        assert_eq!(rig.changed(), "default.toml=edited");
        assert_eq!(rig.counters().changed, 4);
    }

    fn a_directory_that_is_replaced_is_watched_anew(rig: Rig) {
        rig.start();
        for round in ["one", "two"] {
            let old = rig.top().join(format!("old-{round}"));
            let new = rig.top().join("new");
            fs::create_dir(&new).expect("a directory");
            fs::write(new.join("default.toml"), round).expect("a file");
            fs::rename(rig.top().join("policies"), &old).expect("a rename");
            fs::rename(&new, rig.top().join("policies")).expect("a rename");
            assert_eq!(rig.changed(), format!("default.toml={round}"));
            fs::write(old.join("default.toml"), "the old directory").expect("a file");
            rig.write("default.toml", &format!("{round} written"));
            assert_eq!(rig.changed(), format!("default.toml={round} written"));
        }
        assert_eq!(rig.counters().changed, 4);
    }

    fn a_directory_far_above_is_replaced(rig: Rig) {
        let build = |name: &str| {
            let policies = rig.top().join(name).join("b/policies");
            fs::create_dir_all(&policies).expect("a directory");
            fs::write(policies.join("default.toml"), name).expect("a file");
        };
        build("a");
        let mut config = rig.config();
        config.roots = vec![rig.top().join("a/b/policies")];
        // Only the poll sees names above the parent of the root.
        config.poll = Duration::from_millis(25);
        build("new");
        let top = rig.top().to_owned();
        rig.start_with(&config);
        fs::rename(top.join("a"), top.join("old")).expect("a rename");
        fs::rename(top.join("new"), top.join("a")).expect("a rename");
        loop {
            match rig.next() {
                Event::Changed(change) => break assert_eq!(words(&change.set), "default.toml=new"),
                // The poll may look between the two renames.
                Event::Trouble(_) | Event::Recovered => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        let status = rig.watch().status();
        let there = top.canonicalize().expect("a real path").join("a/b/policies");
        assert!(status.paths.iter().any(|watched| watched.path == there), "{:?}", status.paths);
        fs::write(top.join("old/b/policies/default.toml"), "the old one").expect("a file");
        fs::write(top.join("a/b/policies/default.toml"), "edited").expect("a file");
        assert_eq!(rig.changed(), "default.toml=edited");
    }

    fn a_directory_that_goes_and_comes_back_is_the_same_again(rig: Rig) {
        rig.start();
        let (policies, away) = (rig.top().join("policies"), rig.top().join("away"));
        fs::rename(&policies, &away).expect("a rename");
        assert!(rig.trouble().ends_with("policies` does not exist"));
        fs::rename(&away, &policies).expect("a rename");
        assert_eq!(rig.next(), Event::Recovered);
        rig.write("default.toml", "second");
        assert_eq!(rig.changed(), "default.toml=second");
    }

    fn a_directory_that_is_deleted_and_made_anew_is_read_again(rig: Rig) {
        rig.start();
        let policies = rig.top().join("policies");
        for text in ["second", "third"] {
            let staged = rig.top().join("staged");
            fs::create_dir(&staged).expect("a directory");
            fs::write(staged.join("default.toml"), text).expect("a file");
            fs::remove_dir_all(&policies).expect("removed");
            assert!(rig.trouble().ends_with("policies` does not exist"));
            assert_eq!(rig.watch().status().troubles.len(), 1);
            fs::rename(&staged, &policies).expect("a rename");
            assert_eq!(rig.changed(), format!("default.toml={text}"));
            assert_eq!(rig.watch().status().troubles, Vec::<String>::new());
        }
        rig.write("default.toml", "fourth");
        assert_eq!(rig.changed(), "default.toml=fourth");
    }

    fn a_root_that_is_missing_at_the_start_is_awaited(rig: Rig) {
        let mut config = rig.config();
        config.roots.push(rig.top().join("more/drop-ins"));
        rig.start_with(&config);
        assert!(rig.trouble().ends_with("more/drop-ins` does not exist"));
        fs::create_dir_all(rig.top().join("new/drop-ins")).expect("a directory");
        fs::write(rig.top().join("new/drop-ins/a.toml"), "x").expect("a file");
        fs::rename(rig.top().join("new"), rig.top().join("more")).expect("a rename");
        assert_eq!(rig.changed(), "default.toml=first a.toml=x");
        assert_eq!(rig.watch().status().troubles, Vec::<String>::new());
    }
}
