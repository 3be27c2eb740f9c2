"""Text to token ids and back, exactly as the checkpoint's tokenizer.json says.

Special tokens (`<|role_end|>`, `<tool_call>`...) are commands to the model, so it matters who
wrote them:

- `encode(text)` parses them: right for a raw completion prompt, where the client writes the whole
  prompt.
- `encode_guarded(pieces)` parses them only in the pieces that a template produced. Text that a
  client put into a message is encoded as letters, whatever it spells. `chat_prompt.py` says which
  piece is which.

The second needs a tokenizer that does not know the special tokens, built on first use from the
same file. Token ids equal those of `encode` on the joined text whenever no client text spells a
special token, because then `chat_prompt.py` calls `encode`; otherwise the text between two true
special tokens is encoded as one run, which is what `encode` does with ordinary text.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

from lingflash.core.errors import InvalidRequestError, ModelLoadError
from lingflash.core.panics import is_panic
from lingflash.protocol.unicode import replace_surrogates

# From text between two special tokens to its ids.
EncodeRun = Callable[[str], Iterable[int]]

# Tags that belong to the answer's text: the tool parser and readers of reasoning need to see them.
VISIBLE_TAGS = frozenset(("<tool_call>", "</tool_call>", "<think>", "</think>"))

_TAG_LIKE = re.compile(r"<[^<>\s]+>|\[[A-Za-z_]+\]")
# Ids that may be missing in a vocabulary, and how much longer a normalizer may make a text.
_SPARE_IDS = 65_536
_MAX_GROWTH = 16
# tokenizers' encode() keeps the interpreter lock, encode_batch_fast() gives it up: worth it when
# long.
_LONG_TEXT_CHARS = 8192


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt and who wrote it.

    Args:
        is_literal: True if no special token may be read in it.
        token_ids: what the text was generated as, to be used instead of encoding it.
    """

    text: str
    is_literal: bool
    token_ids: tuple[int, ...] | None = None


class Tokenizer:
    """A byte-level BPE tokenizer read from tokenizer.json.

    Args:
        source: where it came from, for messages.

    Raises:
        ModelLoadError: it is damaged, or not a byte-level tokenizer.
    """

    def __init__(self, definition: str, *, source: str = "tokenizer.json") -> None:
        try:
            spec: dict[str, Any] = json.loads(definition)
            added: list[dict[str, Any]] = spec.get("added_tokens") or []
            _check_ids(spec, added)
            _check_growth(spec.get("normalizer"))
            _trust_only_raw_matches(spec, added)
            spec["padding"] = spec["truncation"] = None  # for training; a prompt is what it is
            self._hf = HfTokenizer.from_str(json.dumps(spec))
        except BaseException as error:  # tokenizers raises bare Exception for a bad file, or panics
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise ModelLoadError(
                f"{source} cannot be read as a tokenizer ({error}); fetch it again."
            ) from None
        if not _is_byte_level(spec.get("decoder")):
            kind = (spec.get("decoder") or {}).get("type")
            raise ModelLoadError(
                f"{source} has the decoder {kind!r}; only byte-level tokenizers (decoder "
                "'ByteLevel', as in the Ling family) are supported."
            )
        self._spec = spec
        self._added = {token["id"]: token for token in added}
        self._token_bytes = _vocabulary_bytes(self._hf, self._added)
        self._longest_token_bytes = max(map(len, self._token_bytes), default=1) or 1
        self._ids_by_string = {token["content"]: token["id"] for token in added}
        self.special_strings: frozenset[str] = frozenset(
            token["content"] for token in added if _is_command(token)
        )
        self.special_ids: frozenset[int] = frozenset(
            token["id"] for token in added if token.get("special")
        )
        self.hidden_ids: frozenset[int] = frozenset(
            index for index in self.special_ids if self._added[index]["content"] not in VISIBLE_TAGS
        )
        self._special_pattern = _alternation(sorted(self.special_strings, key=len, reverse=True))
        self._split_pattern = _split_pattern(added)
        # Whether encode_guarded cuts text where encode does: it does not look at words' ends.
        self.splits_exactly = not any(token.get("single_word") for token in added)
        self._literal_hf: HfTokenizer | None = None
        self._literal_lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer | None:
        """Read a checkpoint's tokenizer.json; None if the folder has none (token-id mode).

        Raises:
            ModelLoadError: the file is there but unusable.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        try:
            definition = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError(f"{path} cannot be read: {error}.") from None
        return cls(definition, source=str(path))

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; the model may have more rows than this."""
        return len(self._token_bytes)

    @property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token: a text has at least its bytes divided by this many tokens."""
        return self._longest_token_bytes

    @property
    def special_pattern(self) -> re.Pattern[str] | None:
        """Matches any special token's spelling; None if there are none."""
        return self._special_pattern

    def token_id(self, content: str) -> int | None:
        """The id of an added token by its exact spelling, or None."""
        return self._ids_by_string.get(content)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Encode text in which special tokens are read as such.

        Args:
            add_special_tokens: apply tokenizer.json's post-processor (a bos token, if it has one).
        """
        return _encode(self._hf, text, add_special_tokens)

    def encode_run(self, text: str) -> list[int]:
        """Encode text between two special tokens: it is read as letters, whatever it spells."""
        return _encode(self._literal(), text, False)

    def encode_guarded(
        self,
        pieces: Sequence[Piece],
        encode_run: EncodeRun | None = None,
    ) -> list[int]:
        """Encode pieces, reading special tokens only in those that are not literal.

        Args:
            encode_run: instead of the method of this name, with the same results.
        """
        token_ids: list[int] = []
        run: list[str] = []
        encode_run = encode_run or self.encode_run

        def flush() -> None:
            text = "".join(run)
            if text:
                token_ids.extend(encode_run(text))
            run.clear()

        for piece in pieces:
            if piece.token_ids is not None:
                flush()
                token_ids.extend(piece.token_ids)
                continue
            if piece.is_literal or self._split_pattern is None:
                run.append(piece.text)
                continue
            end = 0
            for match in self._split_pattern.finditer(piece.text):
                run.append(piece.text[end : match.start()])
                flush()
                spelling = match.group()  # with the white space that lstrip and rstrip swallow
                if spelling not in self._ids_by_string:
                    spelling = spelling.strip()
                token_ids.append(self._ids_by_string[spelling])
                end = match.end()
            run.append(piece.text[end:])
        flush()
        return token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Decode a whole sequence; bytes that are not UTF-8 become U+FFFD."""
        skip = self.hidden_ids if skip_special_tokens else frozenset()
        data = b"".join(self.token_bytes(i) for i in token_ids if i not in skip)
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; empty for an id the tokenizer does not know."""
        if 0 <= token_id < len(self._token_bytes):
            return self._token_bytes[token_id]
        return b""

    def vocabulary(self) -> list[bytes]:
        """The bytes of every token, by id."""
        return list(self._token_bytes)

    def _literal(self) -> HfTokenizer:
        with self._literal_lock:
            if self._literal_hf is None:
                spec = dict(self._spec)
                spec["added_tokens"] = [
                    token
                    for token in spec.get("added_tokens") or []
                    if token["content"] not in self.special_strings
                ]
                spec["post_processor"] = None  # it may name a removed token
                self._literal_hf = HfTokenizer.from_str(json.dumps(spec))
            return self._literal_hf


def _encode(hf: HfTokenizer, text: str, add_special_tokens: bool) -> list[int]:
    # Half surrogates can arrive as JSON escapes; Rust strings cannot hold them.
    if not text.isascii():
        text = replace_surrogates(text)
    try:
        if len(text) > _LONG_TEXT_CHARS:
            return hf.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return hf.encode(text, add_special_tokens=add_special_tokens).ids
    except BaseException as error:  # such as a regular expression that gives up
        if not is_panic(error):
            raise
        raise InvalidRequestError(
            "The model's tokenizer fails on this text; shorten long runs of one character in it."
        ) from None


def _check_ids(spec: dict[str, Any], added: list[dict[str, Any]]) -> None:
    """Refuse token ids far beyond the number of tokens: tables are as long as the largest id."""
    vocabulary = spec["model"]["vocab"]
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [token["id"] for token in added]
    limit = 2 * len(ids) + _SPARE_IDS
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < limit:
            raise ValueError(f"the token id {token_id!r} is out of range for {len(ids)} tokens")


def _check_growth(normalizer: dict[str, Any] | None) -> None:
    """Refuse a normalizer that multiplies a text's length."""
    parts, growth = [normalizer], 1
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += part.get("normalizers") or []
            if part.get("type") in ("Replace", "Prepend"):
                growth *= max(len(part.get("content") or part.get("prepend") or ""), 1)
        if growth > _MAX_GROWTH:
            raise ValueError("the normalizer makes texts many times as long")


def _is_command(token: dict[str, Any]) -> bool:
    # Fixed template text may be an ordinary added token ('"type": "string"'); it commands nothing.
    return bool(token.get("special")) or _TAG_LIKE.fullmatch(token["content"]) is not None


def _trust_only_raw_matches(spec: dict[str, Any], added: list[dict[str, Any]]) -> None:
    # A token matched after normalization could be spelt in ways that the guard does not look for.
    if spec.get("normalizer") is not None:
        for token in added:
            if _is_command(token):
                token["normalized"] = False


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    if decoder.get("type") == "Sequence":
        return [part.get("type") for part in decoder.get("decoders", [])] == ["ByteLevel"]
    return decoder.get("type") == "ByteLevel"


def _alternation(strings: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, strings))) if strings else None


def _split_pattern(added: list[dict[str, Any]]) -> re.Pattern[str] | None:
    # tokenizers takes the leftmost-longest match over all tokens that are not matched after
    # normalization, ordinary ones too: the same here, or the two ways would split differently.
    parts = []
    for token in sorted(added, key=lambda token: len(token["content"]), reverse=True):
        if token.get("normalized") and not _is_command(token):
            continue
        left = r"\s*" if token.get("lstrip") else ""
        right = r"\s*" if token.get("rstrip") else ""
        parts.append(left + re.escape(token["content"]) + right)
    return re.compile("|".join(parts)) if parts else None


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for, as in GPT-2."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    stand_ins = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(stand_ins)})
    return alphabet


def _vocabulary_bytes(hf: HfTokenizer, added: dict[int, dict[str, Any]]) -> list[bytes]:
    vocabulary = hf.get_vocab(with_added_tokens=True)
    alphabet = _byte_alphabet()
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for string, index in vocabulary.items():
        if index in added:
            table[index] = added[index]["content"].encode("utf-8")
            continue
        try:
            table[index] = bytes(alphabet[char] for char in string)
        except KeyError:
            table[index] = string.encode("utf-8")
    return table
