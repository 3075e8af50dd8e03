r"""An inbox that can be searched: SQLite with FTS5, made from a maildir tree, an mbox, JSONL, or out of nothing.

    CMU maildir · mbox · JSONL ─ read ─▶ Mail | Damaged ─ create ─▶ enron_emails.db ─ Inbox ─▶ search, mail

Invariants
----------
* A database stands under its name only when it is whole: it is made under another one, and renamed.
* A message id is there once; the first mail that has it stays. A mail without one gets the digest of its contents, so
  that the same source always makes the same database.
* A damaged mail is counted and said, and nothing of it is stored; it never stops the making.
* Mails pass one by one: a source of any size needs little memory.
* Whatever is searched for is taken as words: no query can be a mistake of syntax.

The tables are those of ART·E (`emails`, `recipients`, `emails_fts`): a database that its script made can be searched too.
No question, episode or reward here: see `trainer.tasks.email`.
"""

from __future__ import annotations

import contextlib
import email
import email.errors
import email.message
import email.utils
import hashlib
import html
import json
import mailbox
import os
import random
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from trainer.errors import DataError


@dataclass(frozen=True)
class Mail:
    subject: str
    body: str
    date: str = ""  # YYYY-MM-DD or YYYY-MM-DD HH:MM:SS, in UTC where the source says its zone; "": unknown
    sender: str = ""
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    message_id: str = ""
    file_name: str = ""  # within its source


class Damaged(NamedTuple):
    """What could not be read as a mail."""

    where: str
    why: str


class Hit(NamedTuple):
    message_id: str
    snippet: str


# --- sources → mails --------------------------------------------------------------------------------------------------


def read(source: Path) -> Iterator[Mail | Damaged]:
    """Yield the mails of a directory tree with one mail in each file, of a JSONL file, or of an mbox.

    The order is the source's own; that of a tree is the order of its names.
    """
    if source.is_dir():
        return _read_tree(source)
    if not source.is_file():
        raise DataError(
            f"there is no file or directory {str(source)!r} to read mails from. Give a maildir tree, an mbox or a "
            "JSONL file."
        )
    if source.suffix in (".jsonl", ".json", ".ndjson"):
        return _read_jsonl(source)
    return _read_mbox(source)


def _read_tree(root: Path) -> Iterator[Mail | Damaged]:
    unread: list[OSError] = []
    for directory, directories, names in os.walk(root, onerror=unread.append):
        directories.sort()
        for name in sorted(names):
            path = Path(directory) / name
            where = _cleaned(path.relative_to(root).as_posix())
            if name.startswith("."):  # what file managers and rsync leave behind
                continue
            if path.exists() and not path.is_file():  # a pipe: reading it would wait for ever
                yield Damaged(where, "it is no regular file")
                continue
            try:
                raw = path.read_bytes()
            except OSError as error:
                yield Damaged(where, _why(error))
                continue
            yield parse(raw, where)
    for failure in unread:
        yield Damaged(str(failure.filename), _why(failure))


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _read_mbox(path: Path) -> Iterator[Mail | Damaged]:
    with contextlib.closing(mailbox.mbox(path, create=False)) as box:
        for key in box.iterkeys():
            yield parse(box.get_bytes(key), f"mail {int(key) + 1}")


def _read_jsonl(path: Path) -> Iterator[Mail | Damaged]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield parse_json(line, f"line {number}")


def parse(raw: bytes, where: str) -> Mail | Damaged:
    r"""Return the mail of these bytes, as RFC 822 has it.

    >>> parse(b"From: Ann <ANN@x.org>\nSubject: =?utf-8?q?Caf=C3=A9?=\n\nAt noon.\n", "a")
    Mail(subject='Café', body='At noon.', date='', sender='ann@x.org', ..., file_name='a')
    >>> parse(b"\x00\x01", "b")
    Damaged(where='b', why='it has no header of a mail')
    """
    try:
        return _parsed(email.message_from_bytes(raw), where)
    except RecursionError:
        return Damaged(where, "its parts or comments are nested too deeply")


def _parsed(message: email.message.Message, where: str) -> Mail | Damaged:
    if not any(name in message for name in ("From", "To", "Date", "Subject", "Message-ID")):
        return Damaged(where, "it has no header of a mail")
    mail = Mail(
        subject=_one_line(_header(message, "Subject")),
        body=_body(message),
        date=_date(_header(message, "Date")),
        sender=next(iter(_addresses(message, "From")), ""),
        to=_addresses(message, "To"),
        cc=_addresses(message, "Cc"),
        bcc=_addresses(message, "Bcc"),
        message_id=_header(message, "Message-ID").strip(),
        file_name=where,
    )
    return _checked(mail, where)


def parse_json(line: bytes, where: str) -> Mail | Damaged:
    """Return the mail of a JSON object: `body`, and as many of `message_id date subject from to cc bcc` as there are.

    >>> parse_json(b'{"date": "2000-05-01", "subject": "lunch", "body": "At noon?", "to": "a@x.org, b@x.org"}', "1")
    Mail(subject='lunch', body='At noon?', date='2000-05-01', sender='', to=('a@x.org', 'b@x.org'), ...)
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return Damaged(where, "it is not JSON")
    if not isinstance(row, dict) or not isinstance(row.get("body"), str):
        return Damaged(where, "it is no object with a text 'body'")
    try:
        mail = Mail(
            subject=_one_line(_text(row, "subject")),
            body=_cleaned(row["body"]),
            date=_date(_text(row, "date")),
            sender=next(iter(_listed(row, "from")), ""),
            to=_listed(row, "to"),
            cc=_listed(row, "cc"),
            bcc=_listed(row, "bcc"),
            message_id=_text(row, "message_id").strip(),
            file_name=_text(row, "file_name"),
        )
    except TypeError as error:
        return Damaged(where, str(error))
    return _checked(mail, where)


def _checked(mail: Mail, where: str) -> Mail | Damaged:
    return mail if mail.subject or mail.body else Damaged(where, "it has neither a subject nor a body")


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"its {key!r} is not text")
    return _cleaned(value or "")


def _listed(row: dict[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    return _addresses_of([_text({key: value}, key)])


def _header(message: email.message.Message, name: str) -> str:
    return _decoded(message.get(name, ""))


def _decoded(value: Any) -> str:
    text = str(value)
    # An unknown charset, or broken base64: then what stands there is all there is.
    with contextlib.suppress(LookupError, ValueError, email.errors.HeaderParseError):
        text = str(make_header(decode_header(text)))
    return _cleaned(text)


def _addresses(message: email.message.Message, name: str) -> tuple[str, ...]:
    return _addresses_of([_decoded(value) for value in message.get_all(name, [])])


def _addresses_of(values: Sequence[str]) -> tuple[str, ...]:
    pairs = email.utils.getaddresses([_one_line(value) for value in values])
    return tuple(dict.fromkeys(address.lower() for _, address in pairs if address))


def _date(text: str) -> str:
    """Return a date as text that sorts by time; "" if it is none."""
    text = text.strip()
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return date.fromisoformat(text).isoformat()
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(text)
        except (ValueError, TypeError, OverflowError):
            return ""
    if when.tzinfo is not None:
        try:
            when = when.astimezone(timezone.utc)
        except OverflowError:  # the first or last day of all
            return ""
    return when.strftime("%Y-%m-%d %H:%M:%S") if when.year >= 1000 else ""


def _body(message: email.message.Message) -> str:
    """Return the plain text, or else the HTML without its tags; "" where a mail has attachments only."""
    plain, marked_up = [], []
    for part in message.walk():
        kind = part.get_content_type()
        if part.get_content_maintype() == "multipart" or part.get_content_disposition() == "attachment":
            continue
        if kind == "text/plain":
            plain.append(_payload(part))
        elif kind == "text/html":
            marked_up.append(_without_tags(_payload(part)))
    return _cleaned("\n".join(plain or marked_up)).strip()


def _payload(part: email.message.Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return payload.decode(part.get_content_charset("utf-8"))
    except (LookupError, ValueError):  # latin-1 has a character for every byte
        return payload.decode("latin-1")


_TAG = re.compile(r"<(/?\w*)[^<>]*>")
_NOT_SHOWN = ("script", "style")
_LINE_ENDS = ("br", "/p", "/div", "/tr", "/li")


def _without_tags(text: str) -> str:
    r"""Return the text that HTML shows, in time that grows with its length alone.

    >>> _without_tags("<p>A &lt; B<style>p {}</style></p><b>C")
    ' A < B \n C'
    """
    shown: list[str] = []
    inside, at = "", 0  # of a part that is not shown, if in one
    for tag in _TAG.finditer(text):
        name = tag[1].lower()
        if not inside:
            shown += [text[at : tag.start()], "\n" if name in _LINE_ENDS else " "]
            inside = name if name in _NOT_SHOWN else ""
        elif name == f"/{inside}":
            inside = ""
        at = tag.end()
    return html.unescape("".join([*shown, "" if inside else text[at:]]))


def _cleaned(text: str) -> str:
    """Return the text as SQLite and UTF-8 can hold it: no NUL, no half of a surrogate pair, one kind of line break."""
    text = text.replace("\x00", "").replace("\r\n", "\n")
    return text.encode("utf-8", "replace").decode("utf-8")


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- mails → database -------------------------------------------------------------------------------------------------

_TABLES = """
    CREATE TABLE emails (
        id INTEGER PRIMARY KEY,
        message_id TEXT NOT NULL UNIQUE,
        subject TEXT NOT NULL,
        from_address TEXT NOT NULL,
        date TEXT NOT NULL,
        body TEXT NOT NULL,
        file_name TEXT NOT NULL
    );
    CREATE TABLE recipients (
        email_id TEXT NOT NULL REFERENCES emails (message_id),
        recipient_address TEXT NOT NULL,
        recipient_type TEXT NOT NULL
    );
    CREATE VIRTUAL TABLE emails_fts USING fts5 (
        subject, body, content = 'emails', content_rowid = 'id', tokenize = 'porter unicode61'
    );
"""
# Made after the rows, at once: several times cheaper than row by row.
_INDEXES = """
    INSERT INTO emails_fts (emails_fts) VALUES ('rebuild');
    CREATE INDEX emails_by_sender ON emails (from_address);
    CREATE INDEX recipients_by_mail ON recipients (email_id, recipient_address);
    CREATE INDEX recipients_by_address ON recipients (recipient_address, email_id);
"""
PROGRESS_EVERY = 1000
N_DAMAGED_SHOWN = 5


@dataclass
class Made:
    """What became of a source's mails."""

    n_read: int = 0
    n_kept: int = 0
    n_duplicates: int = 0
    n_damaged: int = 0
    damaged: list[Damaged] = field(default_factory=list)  # the first of them

    def in_words(self) -> str:
        """Return a sentence for a person; the damaged mails that are known are named.

        >>> Made(3, 1, 1, 1, [Damaged("line 2", "it is not JSON")]).in_words()
        '1 mail of 3; 1 was there already, 1 is damaged and left out (line 2: it is not JSON)'
        """
        text = f"{self.n_kept:,} {'mail' if self.n_kept == 1 else 'mails'} of {self.n_read:,}"
        parts = []
        if self.n_duplicates:
            parts.append(f"{self.n_duplicates:,} {_was(self.n_duplicates)} there already")
        if self.n_damaged:
            known = "; ".join(f"{where}: {why}" for where, why in self.damaged)
            more = "; …" if self.n_damaged > len(self.damaged) else ""
            parts.append(
                f"{self.n_damaged:,} {'is' if self.n_damaged == 1 else 'are'} damaged and left out ({known}{more})"
            )
        return "; ".join([text, ", ".join(parts)]) if parts else text


def _was(n: int) -> str:
    return "was" if n == 1 else "were"


def create(
    mails: Iterable[Mail | Damaged], path: Path, progress: Callable[[Made], None] = lambda made: None
) -> Made:
    """Make the database `path` of these mails, in place of one that is there; `progress` is told every 1,000 mails."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(unfinished)) as connection:
            # The file is thrown away if anything goes wrong: it needs no journal of its own.
            connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
            made = _fill(connection, mails, progress)
        if made.n_kept == 0:
            raise DataError(
                f"no mail was found ({made.in_words()}), so no database was made. Give a maildir tree with one mail "
                "in each file, an mbox, or a JSONL file whose objects have a 'body'."
            )
        _flush(unfinished)
        os.replace(unfinished, path)
        _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return made


def _fill(
    connection: sqlite3.Connection, mails: Iterable[Mail | Damaged], progress: Callable[[Made], None]
) -> Made:
    made = Made()
    connection.executescript(_TABLES)
    with connection:
        for mail in mails:
            made.n_read += 1
            if isinstance(mail, Damaged):
                made.n_damaged += 1
                if len(made.damaged) < N_DAMAGED_SHOWN:
                    made.damaged.append(mail)
            elif _insert(connection, mail):
                made.n_kept += 1
            else:
                made.n_duplicates += 1
            if made.n_read % PROGRESS_EVERY == 0:
                progress(made)
    connection.executescript(_INDEXES)
    progress(made)
    return made


def _insert(connection: sqlite3.Connection, mail: Mail) -> bool:
    message_id = mail.message_id or digest(mail)
    row = (message_id, mail.subject, mail.sender, mail.date, mail.body, mail.file_name)
    inserted = connection.execute(
        "INSERT OR IGNORE INTO emails (message_id, subject, from_address, date, body, file_name)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        row,
    )
    if inserted.rowcount == 0:
        return False
    recipients = [
        (message_id, address, kind)
        for kind, addresses in (("to", mail.to), ("cc", mail.cc), ("bcc", mail.bcc))
        for address in addresses
    ]
    connection.executemany("INSERT INTO recipients VALUES (?, ?, ?)", recipients)
    return True


def digest(mail: Mail) -> str:
    """Return the message id of a mail that has none: the same for the same sender, date, subject and body."""
    contents = json.dumps([mail.sender, mail.date, mail.subject, mail.body])
    return f"sha-{hashlib.sha256(contents.encode()).hexdigest()[:16]}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- searching --------------------------------------------------------------------------------------------------------

MAX_RESULTS = 10  # of one search, as in ART·E
SNIPPET_WORDS = 15  # 〃


class Inbox:
    """Mails that can be searched and read, by any thread."""

    def __init__(self, connection: sqlite3.Connection, source: str) -> None:
        self.source = source
        self._connection = connection
        # A search takes about a millisecond: threads that wait for one another lose nothing.
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Inbox:
        """Return the inbox of a database that `create` or ART·E's script made; it is only read."""
        try:
            connection = sqlite3.connect(
                f"file:{quote(str(path))}?mode=ro", uri=True, check_same_thread=False
            )
            connection.execute("SELECT message_id, subject, from_address, date, body FROM emails LIMIT 1")
            connection.execute("SELECT rowid FROM emails_fts LIMIT 1")
            connection.execute("SELECT email_id, recipient_address, recipient_type FROM recipients LIMIT 1")
        except sqlite3.Error as error:
            raise DataError(
                f"{str(path)!r} is not a database of mails: {error}. Make one with `trainer data emails SOURCE -o "
                f"{path.name}`."
            ) from None
        return cls(connection, str(path))

    @classmethod
    def of(cls, mails: Iterable[Mail | Damaged], source: str) -> Inbox:
        """Return an inbox in memory."""
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        made = _fill(connection, mails, lambda _: None)
        if made.n_kept == 0:
            raise DataError(
                f"{source} holds no mail ({made.in_words()}). Give other mails with --data, or none."
            )
        return cls(connection, f"{source}: {made.in_words()}")

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM emails")[0][0])

    def __contains__(self, message_id: str) -> bool:
        return bool(self._rows("SELECT 1 FROM emails WHERE message_id = ?", message_id))

    def __iter__(self) -> Iterator[Mail]:
        """Yield the mails in the order in which they came, read one hundred at a time."""
        last = -1
        while rows := self._rows(
            "SELECT id, message_id FROM emails WHERE id > ? ORDER BY id LIMIT 100", last
        ):
            last = rows[-1][0]
            for _, message_id in rows:
                mail = self.mail(message_id)
                assert mail is not None, "nothing is ever deleted"
                yield mail

    def mail(self, message_id: str) -> Mail | None:
        rows = self._rows(
            "SELECT message_id, subject, from_address, date, body FROM emails WHERE message_id = ?",
            message_id,
        )
        if not rows:
            return None
        found, subject, sender, when, body = rows[0]
        recipients: dict[str, list[str]] = {}
        for kind, address in self._rows(
            "SELECT recipient_type, recipient_address FROM recipients WHERE email_id = ? ORDER BY rowid",
            message_id,
        ):
            recipients.setdefault(kind, []).append(address)
        return Mail(
            message_id=found,
            subject=subject or "",
            sender=sender or "",
            date=when or "",
            body=body or "",
            to=tuple(recipients.get("to", ())),
            cc=tuple(recipients.get("cc", ())),
            bcc=tuple(recipients.get("bcc", ())),
        )

    def search(
        self,
        keywords: Sequence[str],
        *,
        owner: str = "",
        from_addr: str = "",
        to_addr: str = "",
        sent_after: str = "",
        sent_before: str = "",
        max_results: int = MAX_RESULTS,
        snippet_words: int = SNIPPET_WORDS,
    ) -> list[Hit]:
        """Return the newest mails that have all the keywords, in subject or body: the day `sent_before` is not in.

        A keyword of several words is a phrase. `owner` keeps to the mails that this address sent or got.
        """
        phrases = [_phrase(keyword) for keyword in keywords]
        if not phrases or not all(phrases):
            return []
        conditions, values = ["emails_fts MATCH ?"], [" ".join(phrases)]
        for condition, value in (
            (f"(m.from_address = ?1 OR {_IS_RECIPIENT})", owner.lower()),
            ("m.from_address = ?1", from_addr.lower()),
            (_IS_RECIPIENT, to_addr.lower()),
            ("m.date >= ?1", sent_after),
            ("m.date < ?1", sent_before),
        ):
            if value:
                values.append(_cleaned(value))
                conditions.append(condition.replace("?1", f"?{len(values)}"))
        rows = self._rows(
            f"SELECT m.message_id, snippet(emails_fts, -1, '', '', '…', {int(snippet_words)})"
            " FROM emails_fts JOIN emails AS m ON m.id = emails_fts.rowid"
            f" WHERE {' AND '.join(conditions)} ORDER BY m.date DESC, m.id LIMIT {int(max_results)}",
            *values,
        )
        return [Hit(message_id, _one_line(snippet)) for message_id, snippet in rows]

    def having(self, keywords: Sequence[str], at_most: int) -> list[str]:
        """Return the ids of some mails that `search` finds for these keywords: a tenth of its time."""
        return [
            row[0]
            for row in self._rows(
                "SELECT m.message_id FROM emails_fts JOIN emails AS m ON m.id = emails_fts.rowid"
                " WHERE emails_fts MATCH ? LIMIT ?",
                " ".join(map(_phrase, keywords)),
                at_most,
            )
        ]

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()


_IS_RECIPIENT = (
    "EXISTS (SELECT 1 FROM recipients AS r WHERE r.email_id = m.message_id AND r.recipient_address = ?1)"
)


def _phrase(keyword: str) -> str:
    """Return a keyword as FTS5's string, which has no syntax inside; "" if there is no letter or digit in it."""
    text = _cleaned(keyword)
    return '"' + text.replace('"', '""') + '"' if any(map(str.isalnum, text)) else ""


# --- out of nothing ---------------------------------------------------------------------------------------------------

_PEOPLE = (
    "ann",
    "bob",
    "carla",
    "dan",
    "eve",
    "frank",
    "gina",
    "hugo",
    "ida",
    "jack",
    "kate",
    "leo",
    "mona",
    "nick",
)
_TOPICS = (
    "audit",
    "budget",
    "contract",
    "invoice",
    "payroll",
    "pipeline",
    "report",
    "storage",
    "training",
    "travel",
)
_PLACES = (
    "austin",
    "boston",
    "chicago",
    "dallas",
    "denver",
    "houston",
    "london",
    "madrid",
    "oslo",
    "paris",
    "tulsa",
)
_THINGS = ("deal", "meter", "order", "ticket")
_TEXTS = (
    "please look at {thing} {number} for {place} before we talk about the {topic} .",
    "the {topic} for {place} is done . {thing} {number} is the one to use . thanks , {who}",
    "{who} ,\nthe {place} office asks about {thing} {number} . can you check the {topic} ?",
    "as agreed , {thing} {number} goes to {place} this week . i will send the {topic} later .",
    "{who} needs {thing} {number} today , or the {topic} in {place} will be late .",
)


def generate(n: int, seed: int) -> list[Mail]:
    """Return `n` mails that were made up, the same ones for the same seed.

    >>> generate(1, seed=0)[0] == generate(2, seed=0)[0]
    True
    """
    rng = random.Random(f"inbox {seed}")
    first_day = date(2000, 1, 3)
    mails = []
    for i in range(n):
        topic, place, thing, who = map(rng.choice, (_TOPICS, _PLACES, _THINGS, _PEOPLE))
        code, number = rng.randrange(100, 1000), rng.randrange(1000, 10_000)
        words = {"topic": topic, "place": place, "thing": thing, "who": who, "code": code, "number": number}
        mails.append(
            Mail(
                message_id=f"made-up-{i:04}",
                date=(first_day + timedelta(days=rng.randrange(700))).isoformat(),
                subject=rng.choice(("{topic} {code} {place}", "{place} {topic} {code}")).format(**words),
                sender=f"{rng.choice(_PEOPLE)}@example.com",
                to=(f"{who}@example.com",),
                body=rng.choice(_TEXTS).format(**words),
            )
        )
    return mails


def disguised(mails: Sequence[Mail], seed: int) -> list[Mail]:
    """Return the same mails with each other's days, other message ids, and other numbers in their text.

    The language stays what it is, and nothing of it can be answered by heart: out of a few hundred mails come as many
    demonstrations as copying takes to learn.
    """
    rng = random.Random(f"disguise {seed}")
    days = [mail.date for mail in mails if mail.date]
    taken: set[str] = set()
    found = []
    for mail in mails:
        message_id = mail.message_id
        while message_id in taken or message_id == mail.message_id:
            message_id = _other_digits(mail.message_id, rng)
        taken.add(message_id)
        found.append(
            replace(
                mail,
                message_id=message_id,
                date=rng.choice(days) if mail.date else "",
                subject=_renumbered(mail.subject, rng),
                body=_renumbered(mail.body, rng),
            )
        )
    return found


def _other_digits(message_id: str, rng: random.Random) -> str:
    """Return a message id of the same form, with another last number; one that has none gets one."""
    numbers = list(re.finditer(r"\d+", message_id))
    if not numbers or len(numbers[-1][0]) < 4:  # too few to tell mails apart
        return f"{message_id}-{rng.randrange(10_000):04}"
    begin, end = numbers[-1].span()
    return message_id[:begin] + "".join(rng.choices("0123456789", k=end - begin)) + message_id[end:]


def _renumbered(text: str, rng: random.Random) -> str:
    # Short numbers are days and hours: they stay what they can be.
    return re.sub(r"\d{3,}", lambda number: "".join(rng.choices("0123456789", k=len(number[0]))), text)
