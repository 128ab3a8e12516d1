use super::*;

fn layout(windows: &[Option<i64>]) -> CacheLayout {
    CacheLayout { windows: windows.into(), recurrent: 0, heads: 2, kv_heads: 2, device: Device::Cpu }
}

/// Two heads of size 1; token t of slot s has the key 1000 s + t in head 0, and its negative in head 1.
fn filled(lengths: &[i64], windows: &[Option<i64>]) -> KvCache {
    let mut cache = KvCache::new(layout(windows), lengths.len());
    add(&mut cache, &(0..lengths.len() as i64).collect::<Vec<_>>(), lengths);
    cache
}

fn add(cache: &mut KvCache, names: &[i64], added: &[i64]) {
    cache.reserve(added);
    let at = |s: usize| (cache.lengths[s]..cache.lengths[s] + added[s]).map(move |t| (1000 * names[s] + t) as f32);
    let keys: Vec<f32> = (0..added.len()).flat_map(at).flat_map(|x| [x, -x]).collect();
    let k = Tensor::from_slice(&keys).view([-1, 2, 1]);
    for layer in 0..cache.layers.len() {
        cache.write(layer, &k, &(&k + 0.5), added);
    }
    cache.advance(added);
}

/// Checks that every slot has the keys and values of the sequence called `names[s]`: of a layer with a window at least what
/// the next token sees, and not much more.
fn check(cache: &KvCache, names: &[i64]) {
    assert_eq!(cache.lengths.len(), names.len());
    for (layer, window) in cache.layout.windows.iter().enumerate() {
        let stored = cache.stored_in(layer);
        let (k, v) = cache.read(layer, *stored.iter().max().unwrap());
        for (s, (&name, &length)) in names.iter().zip(&cache.lengths).enumerate() {
            let kept = stored[s];
            assert!(kept >= window.map_or(length, |window| length.min(window - 1)), "layer {layer}, slot {s}");
            assert!(kept <= window.map_or(length, |window| window + (window / 4).max(2)), "layer {layer}, slot {s}");
            let expected = Tensor::arange(kept, (Kind::Float, Device::Cpu)) + (1000 * name + length - kept) as f64;
            let of = |t: &Tensor, head: i64| t.get(s as i64).get(head).narrow(0, 0, kept).view([-1]);
            assert_eq!(of(&k, 0), expected, "layer {layer}, slot {s}");
            assert_eq!(of(&k, 1), -&expected, "layer {layer}, slot {s}");
            assert_eq!(of(&v, 0), &expected + 0.5, "layer {layer}, slot {s}");
            let seen = kept.min(window.map_or(kept, |window| window - 1));
            match cache.earlier(layer, s, 1) {
                None => assert_eq!(seen, 0, "layer {layer}, slot {s}"),
                Some((k, _)) => assert_eq!(k.get(0).get(0).view([-1]), expected.narrow(0, kept - seen, seen)),
            }
        }
    }
}

#[test]
fn slots_keep_their_tokens_while_the_cache_grows_and_shrinks() {
    let mut cache = filled(&[3, 130, 1, 7], &[None, Some(5), None, Some(40)]);
    check(&cache, &[0, 1, 2, 3]);
    cache.retain_slots(&[3, 1, 2]); // in place: the last slot replaces the first
    check(&cache, &[3, 1, 2]);
    add(&mut cache, &[3, 1, 2], &[300, 1, 2]); // grows
    check(&cache, &[3, 1, 2]);
    assert_eq!(cache.lengths, [307, 131, 3]);
    cache.retain_slots(&[2, 0, 1]); // a rotation: not in place
    check(&cache, &[2, 3, 1]);
    cache.fork_slot(1, 1); // slots double
    check(&cache, &[2, 3, 1, 3]);
    add(&mut cache, &[2, 3, 1, 3], &[0, 0, 0, 4]);
    check(&cache, &[2, 3, 1, 3]);
    cache.add_slots(2);
    add(&mut cache, &[2, 3, 1, 3, 5, 6], &[0, 0, 0, 0, 9, 2]);
    check(&cache, &[2, 3, 1, 3, 5, 6]);
    cache.retain_slots(&[0, 1, 2]);
    // The layers with a window no longer have what the sixth token of the second sequence sees.
    assert_eq!((cache.truncate(1, 5), cache.truncate(0, 2)), (0, 2));
    assert_eq!(cache.truncate(2, 130), 130);
    add(&mut cache, &[2, 3, 1], &[1, 1, 1]);
    check(&cache, &[2, 3, 1]);
    assert_eq!(cache.lengths, [3, 1, 131]);
    // One token at a time, and more at once than the windows have.
    for added in [1, 1, 1, 3, 1, 90, 1, 200].into_iter().chain([1; 40]) {
        add(&mut cache, &[2, 3, 1], &[added, 1, 0]);
        check(&cache, &[2, 3, 1]);
    }
}
