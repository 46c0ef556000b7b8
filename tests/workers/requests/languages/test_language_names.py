"""Names of languages, held to what their standards say they mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART50
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from tandem.errors import InvalidRequest
from tandem.workers.requests.languages.names import LanguageNames

MODELS = {
    "nllb": LanguageNames(NLLB),
    "mbart": LanguageNames(MBART50),
    "m2m": LanguageNames(M2M100["m2m100"]),
    "whisper": LanguageNames(LANGUAGES, TO_LANGUAGE_CODE),
    "t5": LanguageNames(["en", "fr", "de", "ro"]),
    # The targets of opus-mt-en-ROMANCE (some), opus-mt-en-zh and opus-mt-en-sla, as in their vocabularies.
    "romance": LanguageNames(
        ["fr", "fr_BE", "fr_CA", "es", "es_AR", "es_MX", "pt", "pt_br", "pt_PT", "oc", "wa"]
    ),
    "chinese": LanguageNames(
        ["cmn", "cmn_Hans", "cmn_Hant", "yue", "yue_Hans", "yue_Hant", "lzh", "nan", "wuu"]
    ),
    "slavic": LanguageNames(
        ["hrv", "srp_Cyrl", "srp_Latn", "bos_Latn", "ukr", "bel", "bel_Latn", "rus", "dsb"]
    ),
}


@pytest.mark.parametrize(
    ("model", "code", "names"),
    [
        (
            "nllb",
            "eng_Latn",
            "en EN en-US en_GB eng ENG English english eng_latn >>eng_Latn<< en-Latn-US en-x-mine",
        ),
        ("nllb", "fra_Latn", "fr fra fre French FRENCH fr-CA fr_FR >>fra<< <|fr|> __fr__ <2fr> français"),
        ("nllb", "deu_Latn", "de ger deu German de-AT de-1996 de-u-co-phonebk Deutsch"),
        (
            "nllb",
            "zho_Hans",
            "zh zho chi cmn zh-CN zh_SG zh-Hans zh-Hans-CN zh-cmn-Hans zho_hans Chinese Mandarin",
        ),
        ("nllb", "zho_Hant", "zh-TW zh-HK zh-Hant zh-Hant-HK cmn-Hant"),
        ("nllb", "yue_Hant", "yue zh-yue Cantonese yue-HK"),
        ("nllb", "por_Latn", "pt pt-BR pt-PT por Portuguese"),
        ("nllb", "nob_Latn", "no nb nor nob nb-NO Norwegian"),
        ("nllb", "nno_Latn", "nn nno nn-NO"),
        ("nllb", "tgl_Latn", "tl fil tgl Tagalog Filipino fil-PH"),
        ("nllb", "heb_Hebr", "iw he heb Hebrew he-IL"),
        ("nllb", "ind_Latn", "in id ind Indonesian"),
        ("nllb", "ydd_Hebr", "ji yi yid ydd Yiddish"),
        ("nllb", "arb_Arab", "ar ara arb Arabic ar-EG ar-SA ar-Arab"),
        ("nllb", "ace_Arab", "ace-Arab"),
        ("nllb", "ace_Latn", "ace ace-Latn Acehnese"),
        ("nllb", "arz_Arab", "arz"),
        ("nllb", "pes_Arab", "fa fas per pes Persian fa-IR"),
        ("nllb", "prs_Arab", "prs fa-AF Dari"),
        ("nllb", "zsm_Latn", "ms msa may zsm Malay ms-MY"),
        ("nllb", "swh_Latn", "sw swa swh Swahili sw-KE"),
        ("nllb", "azj_Latn", "az aze azj"),
        ("nllb", "kmr_Latn", "ku kur kmr"),
        ("nllb", "ckb_Arab", "ckb"),
        ("nllb", "als_Latn", "sq alb sqi als Albanian"),
        ("nllb", "lvs_Latn", "lv lav lvs Latvian"),
        ("nllb", "est_Latn", "et est ekk Estonian"),
        ("nllb", "khk_Cyrl", "mn mon khk Mongolian"),
        ("nllb", "npi_Deva", "ne nep npi Nepali"),
        ("nllb", "ory_Orya", "or ori ory"),
        ("nllb", "pbt_Arab", "ps pus pbt Pashto"),
        ("nllb", "plt_Latn", "mg mlg plt Malagasy"),
        ("nllb", "uzn_Latn", "uz uzb uzn Uzbek"),
        ("nllb", "quy_Latn", "qu que quy Quechua"),
        ("nllb", "fuv_Latn", "ff ful fuv"),
        ("nllb", "gaz_Latn", "om orm gaz"),
        ("nllb", "twi_Latn", "tw twi"),
        ("nllb", "aka_Latn", "ak aka"),
        ("nllb", "srp_Cyrl", "sr srp sr-Cyrl sr-RS Serbian"),
        ("nllb", "kas_Arab", "ks"),
        ("nllb", "mya_Mymr", "my bur mya Burmese"),
        ("nllb", "jpn_Jpan", "ja jpn Japanese ja-JP"),
        ("nllb", "kor_Hang", "ko kor Korean ko-KR"),
        ("mbart", "en_XX", "en en_XX EN-US eng English en_xx"),
        ("mbart", "zh_CN", "zh zh-Hans zh-CN Chinese cmn"),
        ("mbart", "ar_AR", "ar ar-EG arb Arabic"),
        ("mbart", "pt_XX", "pt pt-BR por"),
        ("mbart", "ro_RO", "ro mo ron rum"),
        ("mbart", "tl_XX", "tl fil"),
        ("m2m", "zh", "zh zh-TW zh-Hans zho"),
        ("m2m", "no", "no nb nor nob"),
        ("m2m", "en", "__en__ en eng"),
        ("m2m", "sr", "sr sr-Latn sh"),
        ("m2m", "ns", "ns nso Pedi nso_Latn"),
        ("whisper", "jw", "jw jv jav javanese"),
        ("whisper", "es", "es castilian <|es|> Spanish es-MX"),
        ("whisper", "zh", "zh mandarin chinese cmn"),
        ("t5", "de", "de German ger deu_Latn de_DE"),
        ("romance", "fr", "fr fra French fr-CH fr_FR"),
        ("romance", "fr_BE", "fr-BE fr_BE >>fr_BE<<"),
        ("romance", "pt_br", "pt-BR pt_BR"),
        ("romance", "pt", "pt por pt-AO"),
        ("chinese", "cmn_Hans", "zh zh-CN cmn_Hans"),
        ("chinese", "cmn_Hant", "zh-TW >>cmn_Hant<<"),
        ("chinese", "cmn", "cmn"),
        ("slavic", "srp_Latn", "sr-Latn sr_Latn_RS sh sr-ME"),
        ("slavic", "srp_Cyrl", "sr Serbian"),
        ("slavic", "bel", "be Belarusian"),
        ("slavic", "bos_Latn", "bs bos Bosnian"),
    ],
)
def test_names_mean_codes(model: str, code: str, names: str) -> None:
    names_of = MODELS[model]
    assert {name: names_of.resolve(name, "source_language") for name in names.split()} == dict.fromkeys(
        names.split(), code
    )


@pytest.mark.parametrize(("name", "code"), [
    ("Simplified Chinese", "zho_Hans"), ("Traditional Chinese", "zho_Hant"),
    ("Chinese (Traditional)", "zho_Hant"),
    ("Haitian Creole", "hat_Latn"), ("Egyptian Arabic", "arz_Arab"), ("Norwegian Nynorsk", "nno_Latn"),
    (" en ", "eng_Latn"), ("Scottish Gaelic", "gla_Latn"), ("Brazilian Portuguese", "por_Latn"),
    ("Chinese, Traditional", "zho_Hant"), ("chinese simplified", "zho_Hans"),
    ("Serbian (Cyrillic)", "srp_Cyrl"),
    ("English (USA)", "eng_Latn"), ("English (United Kingdom)", "eng_Latn"), ("en_US.UTF-8", "eng_Latn"),
    ("Kurdish (Kurmanji)", "kmr_Latn"), ("Kurdish (Sorani)", "ckb_Arab"), ("Persian (Farsi)", "pes_Arab"),
    ("Tagalog (Filipino)", "tgl_Latn"), ("Norwegian (Nynorsk)", "nno_Latn"), ("Greek (modern)", "ell_Grek"),
    ("Hebrew (modern)", "heb_Hebr"), ("Arabic (Standard)", "arb_Arab"), ("Arabic (Egyptian)", "arz_Arab"),
    ("Azerbaijani (South)", "azb_Arab"), ("Português (Brasil)", "por_Latn"), ("中文(简体)", "zho_Hans"),
    ("中文（繁體）", "zho_Hant"), ("Chinese-Simplified", "zho_Hans"), ("Haitian_Creole", "hat_Latn"),
    ("zh\u2011TW", "zho_Hant"), ("zh\u2013TW", "zho_Hant"), ("zh-CHS", "zho_Hans"), ("zh-CHT", "zho_Hant"),
    ("ca_ES.UTF-8@valencia", "cat_Latn"), ("ks_IN@devanagari", "kas_Deva"), ("sr_RS@cyrillic", "srp_Cyrl"),
    ("English (US)", "eng_Latn"), ("日本語", "jpn_Jpan"), ("中文", "zho_Hans"), ("Русский", "rus_Cyrl"),
])  # fmt: skip
def test_names_of_several_words(name: str, code: str) -> None:
    assert MODELS["nllb"].resolve(name, "source_language") == code


@pytest.mark.parametrize(("model", "name", "shown"), [
    ("nllb", "sr-Latn", "'sr-Latn' is not one of this model's 202 languages; nearest: srp_Cyrl (Serbian)"),
    ("nllb", "jp", "nearest: jpn_Jpan (Japanese)"),
    ("nllb", "CZ", "nearest: ces_Latn (Czech)"),
    ("nllb", "cn", "nearest: zho_Hans (Chinese (Simplified))"),
    ("nllb", "Brazil", "nearest: por_Latn (Portuguese)"),
    ("nllb", "se", "nearest: swe_Latn (Swedish)"),
    ("nllb", "Englsh", "nearest: eng_Latn (English)"),
    ("nllb", "eng_Lat", "nearest: eng_Latn (English)"),
    ("nllb", "gsw", "nearest: deu_Latn (German)"),
    ("nllb", "arq", "nearest: arb_Arab (Arabic)"),
    ("nllb", "nds", "is not one of this model's "),
    ("nllb", "xx", "languages: ace_Arab, ace_Latn, acm_Arab, acq_Arab, aeb_Arab, afr_Latn, ajp_Arab, "
     "aka_Latn, als_Latn, amh_Ethi, apc_Arab, arb_Arab and 190 more, which /languages lists"),
    ("nllb", "Greek (wild)", "nearest: ell_Grek (Greek)"),
    ("nllb", "sr_RS@latin", "nearest: srp_Cyrl (Serbian)"),
    ("nllb", "", "'' is not one of"),
    ("nllb", "x" * 100, "'xxxx"),
    ("mbart", "zh-TW", "nearest: zh_CN (Chinese (Simplified))"),
    ("m2m", "nn", "nearest: no (Norwegian)"),
    ("t5", "es", "'es' is not one of this model's languages: de, en, fr, ro"),
])  # fmt: skip
def test_what_no_code_means_is_refused_with_the_nearest(model: str, name: str, shown: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        MODELS[model].resolve(name, "target_language")
    assert refused.value.field == "target_language"
    assert shown in refused.value.message
    assert len(refused.value.message) < 300


def test_what_leaves_a_choice_is_refused_with_the_choices() -> None:
    regional = LanguageNames(["en_GB", "en_AU", "fr"])
    with pytest.raises(InvalidRequest, match=r"may be each of en_GB \(.*\), en_AU \(.*\): name one of them"):
        regional.resolve("en", "source_language")
    assert regional.resolve("en-AU", "source_language") == "en_AU"
    folded = LanguageNames(["EN", "en"])
    assert folded.resolve("en", "source_language") == "en"
    with pytest.raises(InvalidRequest, match="may be each of"):
        folded.resolve("En", "source_language")


def test_regions_are_the_nearest_that_there_are() -> None:
    chinese = LanguageNames(["zh", "zh_CN", "zh_TW"])
    assert [chinese.resolve(name, "") for name in ("zh-HK", "zho", "zh-Hans", "zh-SG")] == [
        "zh_TW", "zh", "zh", "zh",
    ]  # fmt: skip
    regional = LanguageNames(["pt_BR", "pt_PT", "es_ES", "es_419"])
    expected = {"pt": "pt_BR", "pt-AO": "pt_PT", "pt_pt": "pt_PT", "es-MX": "es_419", "es": "es_ES"}
    assert {name: regional.resolve(name, "source_language") for name in expected} == expected


def test_a_group_stands_for_every_language() -> None:
    names = LanguageNames(["ROMANCE"], any_language=True)
    assert {names.resolve(name, "source_language") for name in ("fr", "Italian", "pt-BR", "ROMANCE")} == {
        "ROMANCE"
    }
    assert names.matching("xx") == names.matching("nonsense") == ()
    for group in ("mul", "sla", "gmw", "roa"):
        assert LanguageNames([group], any_language=True).matching("ru") == (group,)
    assert LanguageNames(["mul", "ru"], any_language=True).matching("ru") == ("ru",)
    assert LanguageNames(["zh"], any_language=True).matching("fr") == ()
    assert LanguageNames(["ROMANCE"]).matching("fr") == ()


@pytest.mark.parametrize("model", MODELS)
def test_every_code_and_tag_comes_back(model: str) -> None:
    """An own code means itself, in any case and in any tokenizer's marks; its tag means it; it has a name."""
    names = MODELS[model]
    for code in names.codes:
        assert names.resolve(code, "") == code
        assert names.resolve(names.tag(code), "") == code
        assert names.resolve(f">>{code}<<", "") == code
        if code.lower() not in names.codes:
            assert (
                names.resolve(code.upper(), "") == names.resolve(code.replace("_", "-").lower(), "") == code
            )
        assert names.name(code)
        assert "nknown" not in names.name(code)
    assert len({names.tag(code) for code in names.codes}) == len(names.codes)


def test_tags_are_those_that_clients_have() -> None:
    shown = {code: MODELS["nllb"].tag(code) for code in NLLB}
    expected = {
        "eng_Latn": "en", "zho_Hans": "zh-Hans", "zho_Hant": "zh-Hant", "arb_Arab": "ar",
        "kas_Deva": "ks-Deva",
        "pes_Arab": "fa", "nob_Latn": "no", "nno_Latn": "nn", "twi_Latn": "tw", "aka_Latn": "ak",
        "zsm_Latn": "ms",
        "arz_Arab": "arz", "kmr_Latn": "ku", "yue_Hant": "yue", "pbt_Arab": "ps",
    }  # fmt: skip
    assert {code: shown[code] for code in expected} == expected
    assert MODELS["mbart"].tag("en_XX") == "en"
    assert MODELS["mbart"].tag("zh_CN") == "zh-Hans"
    assert MODELS["m2m"].tag("zh") == "zh"
    assert MODELS["romance"].tag("pt_br") == "pt-BR"
    assert MODELS["nllb"].name("zho_Hant") == "Chinese (Traditional)"
    assert MODELS["t5"].name("fr") == "French"


@given(st.text(max_size=100) | st.from_regex(r"[a-zA-Z]{1,4}([-_][a-zA-Z0-9]{1,8}){0,3}", fullmatch=True))
def test_anything_is_a_code_or_refused(text: str) -> None:
    for names in MODELS.values():
        found = names.matching(text)
        assert set(found) <= set(names.codes)
        if len(found) != 1:
            with pytest.raises(InvalidRequest):
                names.resolve(text, "source_language")
