use proptest::prelude::*;

use super::*;

/// A value of its own, to compare with.
#[derive(Debug, Clone, PartialEq)]
enum Tree {
    Integer(i64),
    Bytes(Vec<u8>),
    List(Vec<Self>),
    Dictionary(Vec<(String, Self)>),
}

impl Tree {
    fn of(value: Value<'_>) -> Self {
        match value {
            Value::Integer(integer) => Self::Integer(integer),
            Value::Bytes(bytes) => Self::Bytes(bytes.to_vec()),
            Value::List(list) => Self::List(list.iter().map(Self::of).collect()),
            Value::Dictionary(dictionary) => {
                let entries = dictionary.iter();
                let entry =
                    |(key, value)| (String::from_utf8_lossy(key).into_owned(), Self::of(value));
                Self::Dictionary(entries.map(entry).collect())
            }
        }
    }

    fn in_list(&self, list: &mut ListWriter<'_>) {
        match self {
            Self::Integer(integer) => list.integer(*integer),
            Self::Bytes(bytes) => list.bytes(bytes),
            Self::List(items) => list.list(|list| {
                for item in items {
                    item.in_list(list);
                }
            }),
            Self::Dictionary(entries) => list.dictionary(|dictionary| {
                for (key, value) in entries {
                    value.in_dictionary(key, dictionary);
                }
            }),
        };
    }

    fn in_dictionary(&self, key: &str, dictionary: &mut DictionaryWriter<'_>) {
        match self {
            Self::Integer(integer) => dictionary.integer(key, *integer),
            Self::Bytes(bytes) => dictionary.bytes(key, bytes),
            Self::List(items) => dictionary.list(key, |list| {
                for item in items {
                    item.in_list(list);
                }
            }),
            Self::Dictionary(entries) => dictionary.dictionary(key, |dictionary| {
                for (key, value) in entries {
                    value.in_dictionary(key, dictionary);
                }
            }),
        };
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Tree::Integer),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Tree::Bytes),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Tree::List),
            proptest::collection::vec((".{0,12}", inner), 0..6).prop_map(Tree::Dictionary),
        ]
    })
}

fn written(root: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_dictionary(&mut bytes, |dictionary| {
        root.in_dictionary("root", dictionary)
    });
    bytes
}

/// Octets that look like bencode more often than not.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let octet = prop_oneof![
        proptest::sample::select(b"idle0123456789:-e".to_vec()),
        any::<u8>()
    ];
    proptest::collection::vec(octet, 0..80)
}

fn read(text: &str) -> Result<Tree, Error> {
    Value::parse(text.as_bytes()).map(Tree::of)
}

proptest! {
    #[test]
    fn what_is_written_is_read(root in tree()) {
        let bytes = written(&root);
        let expected = Tree::Dictionary(vec![("root".to_owned(), root)]);
        prop_assert_eq!(Value::parse(&bytes).map(Tree::of), Ok(expected));
    }

    #[test]
    fn every_message_has_one_form(bytes in nearly()) {
        // Only valid UTF-8 keys come back as they were.
        if let Ok(Value::Dictionary(dictionary)) = Value::parse(&bytes)
            && dictionary.iter().all(|(key, _)| std::str::from_utf8(key).is_ok())
        {
            let mut again = Vec::new();
            write_dictionary(&mut again, |writer| {
                for (key, value) in dictionary.iter() {
                    let key = std::str::from_utf8(key).unwrap_or_default();
                    Tree::of(value).in_dictionary(key, writer);
                }
            });
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn no_octets_cause_a_panic(bytes in nearly(), noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        for bytes in [bytes, noise] {
            if let Ok(value) = Value::parse(&bytes) {
                Tree::of(value);
            }
        }
    }

    #[test]
    fn no_message_survives_being_cut_or_lengthened(root in tree(), at in any::<prop::sample::Index>()) {
        let bytes = written(&root);
        prop_assert_eq!(Value::parse(&bytes[..at.index(bytes.len())]), Err(Error::Truncated));
        let longer = [bytes.as_slice(), b"e"].concat();
        prop_assert_eq!(Value::parse(&longer), Err(Error::TrailingBytes));
    }

    #[test]
    fn a_changed_octet_is_read_or_refused(root in tree(), at in any::<prop::sample::Index>(), octet in any::<u8>()) {
        let mut bytes = written(&root);
        let at = at.index(bytes.len());
        bytes[at] = octet;
        if let Ok(value) = Value::parse(&bytes) {
            Tree::of(value);
        }
    }
}

#[test]
fn the_four_kinds_are_read() {
    assert_eq!(read("i-42e"), Ok(Tree::Integer(-42)));
    assert_eq!(read("i0e"), Ok(Tree::Integer(0)));
    assert_eq!(read("0:"), Ok(Tree::Bytes(Vec::new())));
    assert_eq!(read("le"), Ok(Tree::List(Vec::new())));
    let pong = Tree::Bytes(b"pong".to_vec());
    assert_eq!(
        read("d6:result4:ponge"),
        Ok(Tree::Dictionary(vec![("result".to_owned(), pong)]))
    );
}

#[test]
fn integers_have_64_bits_and_one_form() {
    assert_eq!(read("i9223372036854775807e"), Ok(Tree::Integer(i64::MAX)));
    assert_eq!(read("i-9223372036854775808e"), Ok(Tree::Integer(i64::MIN)));
    for bad in [
        "i9223372036854775808e",
        "i-9223372036854775809e",
        "i99999999999999999999999999999999999999999999e",
        "ie",
        "i-e",
        "i-0e",
        "i00e",
        "i01e",
        "i+1e",
        "i 1e",
        "i1.5e",
        "i--1e",
    ] {
        assert_eq!(read(bad), Err(Error::Integer), "{bad}");
    }
}

#[test]
fn a_length_is_believed_only_as_far_as_the_bytes_go() {
    assert_eq!(read("5:ping"), Err(Error::Truncated));
    assert_eq!(read("65536:ping"), Err(Error::Truncated));
    for bad in [
        "65537:ping",
        "99999999999999999999999999:x",
        "04:ping",
        "4;ping",
    ] {
        assert_eq!(read(bad), Err(Error::Length), "{bad}");
    }
    assert_eq!(Value::parse(&[b'1'; MAX_LEN + 1]), Err(Error::TooLong));
    assert_eq!(Value::parse(&[b'1'; MAX_LEN]), Err(Error::Truncated));
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| ["l".repeat(depth), "e".repeat(depth)].concat();
    assert!(read(&nested(MAX_DEPTH)).is_ok());
    assert_eq!(read(&nested(MAX_DEPTH + 1)), Err(Error::TooDeep));
    assert_eq!(read(&"l".repeat(MAX_LEN)), Err(Error::TooDeep));
    assert_eq!(read(&"d1:a".repeat(MAX_LEN / 4)), Err(Error::TooDeep));
}

#[test]
fn keys_are_byte_strings_and_have_values() {
    assert_eq!(read("di1e4:pinge"), Err(Error::Key));
    assert_eq!(read("dle4:pinge"), Err(Error::Key));
    assert_eq!(read("d7:commande"), Err(Error::NoValue));
    assert_eq!(read("x"), Err(Error::Kind(b'x')));
    assert_eq!(read(""), Err(Error::Truncated));
}

#[test]
fn a_key_is_found_in_each_of_its_spellings_and_the_first_counts() {
    let message = b"d13:received-froml3:IP4e7:call_id1:a7:call-id1:b1:xi7ee";
    let value = Value::parse(message).map(Value::dictionary);
    let Ok(Some(dictionary)) = value else {
        panic!("{value:?}");
    };
    for key in ["received-from", "received from", "received_from"] {
        assert!(dictionary.list(key).is_some(), "{key}");
    }
    assert_eq!(dictionary.text("call-id"), Some("a"));
    assert_eq!(dictionary.integer("x"), Some(7));
    assert_eq!(dictionary.text("x"), None);
    assert_eq!(dictionary.get("receivedxfrom"), None);
    assert_eq!(dictionary.get("Call-ID"), None);
}
