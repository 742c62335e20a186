"""Which of ffmpeg's demuxers may read a file, headerless formats, and why a file is none."""

import re
from dataclasses import dataclass
from pathlib import Path

from parakeet_worker.errors import InvalidRequest


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Every demuxer of the ffmpegs that the worker is tested with is in one of these; one that is in
# none, as of a later version, is refused: it might open other files, as playlists do.

ALLOWED = _names(
    "3dostr 4xm aa aac aax ac3 ac4 ace acm act adp ads adx aea afc aiff aix alaw alp amr "
    "amrnb amrwb anm apac apc ape apm aptx aptx_hd argo_asf argo_brp argo_cvg asf asf_o ast "
    "au avi avr avs bethsoftvid bfi bfstm bink binka bit bmv boa bonk brstm c93 caf cdxl "
    "codec2 codec2raw daud dcstr derf dfa dfpwm dhav dsf dsicin dss dts dtshd dv dxa ea "
    "ea_cdata eac3 epaf f32be f32le f64be f64le film_cpk flac flv fsb fwse g722 g723_1 g726 "
    "g726le g729 gdv genh gsm gxf hca hcom hnm iamf idcin iff ilbc ipmovie ircam iss ivr jv "
    "kux kvag laf lc3 live_flv lmlm4 loas luodat lxf matroska,webm mca mlp mm mmf mods moflex "
    "mov,mp4,m4a,3gp,3g2,mj2 mp3 mpc mpc8 mpeg mpegts mpegtsraw msf msnwctcp msp mtaf mtv "
    "mulaw musx mv mvi mxf mxg nc nistsphere nsp nsv nut nuv ogg oma osq paf pmp pp_bnk "
    "psxstr pva pvf qcp qoa redspark rka rl2 rm roq rpl rsd rso s16be s16le s24be s24le s32be "
    "s32le s337m s8 sbc scd sdns sds sdx sga shn siff sln smjpeg smk smush sol sox spdif svag "
    "swf tak thp tiertexseq tmv truehd tta ty u16be u16le u24be u24le u32be u32le u8 usm vag "
    "vidc vividas vivo vmd voc vpk vqf w64 wady wav wavarc wc3movie wsaud wsd wsvqa wtv wv "
    "wve xa xmd xmv xvag xwma yop "
)
"""Containers and streams that may hold audio, and hold all of it themselves."""

OPENS_OTHERS = _names(
    "avisynth concat hls,applehttp dash ffmetadata hls image2 image2pipe imf lavfi mlv rtp rtsp "
    "sap sdp tty vapoursynth vobsub webm_dash_manifest "
)
"""What names other files or addresses, or reads more than the one file that it is given."""

DEVICES = _names(
    "alsa android_camera avfoundation bktr caca decklink dshow dv1394 dvdvideo fbdev gdigrab "
    "iec61883 jack kmsgrab libcdio libdc1394 libndi_newtek openal oss pulse sndio v4l2 vfwcap "
    "video4linux2,v4l2 x11grab xcbgrab "
)
"""Microphones, cameras, screens and discs."""

WITHOUT_AUDIO = _names(
    "adf alias_pix apng apv aqtitle ass av1 avs2 avs3 bin bitpacked bmp_pipe brender_pix "
    "cavsvideo cdg cine cri_pipe data dds_pipe dirac dnxhd dpx_pipe dvbsub dvbtxt evc "
    "exr_pipe filmstrip fits flic frm gem_pipe gif gif_pipe h261 h263 h264 hdr_pipe hevc ico "
    "idf ifv ingenient ipu iv8 ivf j2k_pipe jacosub jpeg_pipe jpegls_pipe jpegxl_anim "
    "jpegxl_pipe lrc lvf m4v mcc mgsts microdvd mjpeg mjpeg_2000 mpegvideo mpjpeg mpl2 mpsub "
    "obu pam_pipe pbm_pipe pcx_pipe pdv pfm_pipe pgm_pipe pgmyuv_pipe pgx_pipe phm_pipe "
    "photocd_pipe pictor_pipe pjs png_pipe ppm_pipe psd_pipe qdraw_pipe qoi_pipe r3d rawvideo "
    "rcwt realtext sami scc sdr2 ser sgi_pipe simbiosis_imx srt stl subviewer subviewer1 "
    "sunrast_pipe sup svg_pipe svs tedcaptions tiff_pipe txd v210 v210x vbn_pipe vc1 vc1test "
    "vplayer vvc webp_pipe webvtt xbin xbm_pipe xpm_pipe xwd_pipe yuv4mpegpipe "
)
"""Pictures, subtitles and video alone."""

SYNTHESISED = _names("libgme libmodplug libopenmpt sbg ")
"""Music that is played by instruments of the library."""

_MIN_RATE, _MAX_RATE = 4_000, 192_000
_MAX_CHANNELS = 64
_PCM = frozenset(
    {"s8", "u8", "f32be", "f32le", "f64be", "f64le"}
    | {f"{sign}{bits}{end}" for sign in "su" for bits in (16, 24, 32) for end in ("be", "le")}
)
_RAW = _PCM | {"alaw", "mulaw", "vidc"}
_TELEPHONY = {"ulaw": "mulaw", "mulaw": "mulaw", "pcmu": "mulaw", "alaw": "alaw", "pcma": "alaw"}
_TELEPHONY_RATE = 8_000

WHITELIST = ",".join(sorted(ALLOWED - _RAW))
"""For ffmpeg's `-format_whitelist`: by the name of a file alone, ffmpeg would assume a rate."""

# Formats with a fixed rate.
_FIXED = frozenset({"g722"})
_HEADER = re.compile(rb"RIFF|RF64|FORM|OggS|fLaC|ID3|\.snd|\x1aE\xdf\xa3|....ftyp|caff", re.DOTALL)
_HEADERLESS = re.compile(r"([a-z0-9]+)(?::(\d+))?(?::(\d+))?")


def _head(path: Path, size: int) -> bytes:
    """The first bytes of a file; none of a pipe, where opening or reading it could block."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(size)


@dataclass(frozen=True, slots=True)
class Headerless:
    """Sample layout of a file without a header."""

    demuxer: str
    rate: int | None = None
    channels: int | None = None

    def fits(self, path: Path) -> bool:
        """Whether the file has no header after all."""
        return _HEADER.match(_head(path, 12)) is None

    @property
    def options(self) -> tuple[str, ...]:
        """For ffmpeg, before the input."""
        rate = () if self.rate is None else ("-ar", str(self.rate))
        channels = () if self.channels is None else ("-ac", str(self.channels))
        return ("-format_whitelist", self.demuxer, "-f", self.demuxer, *rate, *channels)


def headerless(text: str | None, field: str = "audio_format") -> Headerless | None:
    """Parse `ulaw`, `alaw:16000` or `s16le:44100:2`; None for a format with a header.

    Raises `InvalidRequest` for samples without a rate, and for rates and channels out of bounds.
    """
    parts = _HEADERLESS.fullmatch((text or "").lstrip(".").lower())
    if parts is None:
        return None
    name = parts[1]
    if name not in _PCM and name not in _TELEPHONY and name not in _FIXED:
        if parts[2] is not None:
            raise InvalidRequest(field, f"{name} has the rate in its header; omit it")
        return None
    rate, channels = (None if each is None else int(each[:9]) for each in parts.groups()[1:])
    if name in _FIXED:
        if rate is not None:
            raise InvalidRequest(field, f"{name} has a fixed rate; omit it")
        return Headerless(name)
    if rate is None and name in _PCM:
        raise InvalidRequest(field, f"{name} requires a rate, such as {name}:16000")
    rate = rate or _TELEPHONY_RATE
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise InvalidRequest(field, f"the rate must be from {_MIN_RATE} to {_MAX_RATE}")
    if channels is not None and not 1 <= channels <= _MAX_CHANNELS:
        raise InvalidRequest(field, f"the channels must be from 1 to {_MAX_CHANNELS}")
    return Headerless(_TELEPHONY.get(name, name), rate, channels or 1)


_ENCRYPTED = re.compile(
    r"Audio: [^\n]*\((?:enca|drms|aavd|p608|owma)\b"
    r"|DRM protected stream"
    r"|(?i:encrypted|decryption key|activation_bytes)",
)
_UNKNOWN_CODEC = re.compile(r"Audio: none|codec none|Unsupported codec|no decoder", re.IGNORECASE)
_UNDESCRIBED = re.compile(r"\[(\w+) @ [^\]]*\] Format not on whitelist")
_HEAD_BYTES = 512
# Files often sent instead of a recording, by their first bytes.
_OTHERS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        (rb"\s*<(?:!doctype\s+html|html)", "an HTML page"),
        (rb"\s*<\?xml", "an XML document"),
        (rb"\s*#EXTM3U", "a playlist"),
        (rb"\s*\[playlist\]", "a playlist"),
        (rb"ffconcat|v=0\r?\n", "a list of other files"),
        (rb"version https://git-lfs", "a git-lfs pointer, not the file itself"),
        (rb"PK\x03\x04", "a ZIP archive"),
        (rb"\x1f\x8b", "a gzip archive"),
        (rb"7z\xbc\xaf", "a 7z archive"),
        (rb"Rar!", "a RAR archive"),
        (rb"%PDF", "a PDF document"),
        (rb"MThd", "a MIDI file, which contains notes but no audio"),
        (rb"\xff\xd8\xff|\x89PNG|GIF8", "a picture"),
        (rb"\s*[{\[]\s*[\"{\[]", "a JSON document"),
        (rb"[\t\n\r\x20-\x7e]+\Z", "text"),
    )
)


ENCRYPTED = "the file is encrypted (DRM); only an unencrypted copy can be decoded"
# The type of an encrypted track in the table of an MP4, which begins or ends the file.
_ENCRYPTED_TRACK = re.compile(rb"stsd.{12}enca", re.DOTALL)
_TABLE_BYTES = 1 << 20


def is_encrypted(path: Path) -> bool:
    """Whether an MP4 has an encrypted audio track. ffmpeg decodes a few of its frames as noise."""
    if _head(path, 8)[4:] != b"ftyp":
        return False
    with path.open("rb") as file:
        head = file.read(_TABLE_BYTES)
        file.seek(max(file.tell(), path.stat().st_size - _TABLE_BYTES))
        return _ENCRYPTED_TRACK.search(head + file.read()) is not None


def clear_reason(text: str, path: Path) -> str | None:
    """A clear reason why ffmpeg, with the log `text`, could not read the file; None if unknown."""
    other = _other(path)
    if other is not None:
        return f"the file is {other}"
    raw = _UNDESCRIBED.search(text)
    if raw is not None and raw[1] in _RAW:
        example = "such as 'ulaw' or 's16le:16000'"
        return f"the file has no header; 'audio_format' must name its format, {example}"
    if _ENCRYPTED.search(text):
        return ENCRYPTED
    if _UNKNOWN_CODEC.search(text):
        return "ffmpeg does not support the codec of its audio"
    return None


def _other(path: Path) -> str | None:
    try:
        head = _head(path, _HEAD_BYTES)
    except OSError:
        return None
    head = head.removeprefix(b"\xef\xbb\xbf")
    kind = next((name for pattern, name in _OTHERS if pattern.match(head)), None)
    if kind is None and head and not head.strip(b"\0"):
        return "empty: it contains only zeros" if _is_zero(path) else None
    return kind


def _is_zero(path: Path) -> bool:
    with path.open("rb") as file:
        return not any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b""))


# Last lines of ffmpeg's log without information about the file.
_UNINFORMATIVE = re.compile(
    r"Conversion failed!|Invalid argument|Error opening (?:input|output)|Error splitting"
    r"|Nothing was written|Invalid data found|Exiting normally|Error opening filters"
    r"|Error initializing|Cannot determine format|Output file|Could not seek",
)


def informative(lines: list[str]) -> str | None:
    """The last informative line of ffmpeg's log, otherwise the last one."""
    full = [line for line in lines if not _UNINFORMATIVE.search(line)] or lines
    return full[-1] if full else None
