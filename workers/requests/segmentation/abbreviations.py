"""Abbreviations that no sentence ends at, of languages whose segmenter does not know them."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

# By language, without their last full stop: titles and other words that another always follows; with # those
# that a number does; with % those that may end a sentence, as "etc." and "p.m.", and do not where a small
# letter follows. ~ is a space that may be left out. Words in lower case may begin with a capital.
_ABBREVIATIONS: Final = {
    "af": "mnr mev mej ds genl kapt bv asb",
    "ar": "د أ أ.د ص#",
    "be": "вул т.е т.~е т.зв праф проф акад інж св ген рыс# табл# гл#",
    "bg": "д-р г-н г-жа арх т.е т.~е т.нар ж.к общ бл# вх# ет# ап# т.~н% пр% гг% вв% ср% обл% н.~е% "
    "пр.~н.~е%",
    "bn": "ড ডা মো মোঃ মি প্রকৌ অ্যাড নং#",
    "bs": "dr prof ul npr tj tzv dipl akad fra mons br# str# čl# tel# itd% i~sl% tzn cca% tis% mil% mlrd% "
    "god% odn pr.~Kr% d.~o.~o%",
    "ca": "St Excm Il·lm Mn ctra pàg# aprox# tel# a.~C% d.~C%",
    "cs": "popř příp plk kpt mjr vč mj tř č# čís# odst# čl# tab# kap# obr#",
    "cy": "Parch Gol gw Athro tt# rh#",
    "da": "bl.a p.g.a cand min# f.~Kr% e.~Kr%",
    "de": "Fa Frl Dipl Dipl.-Ing Hrsg Abt inkl exkl zzgl einschl geb gegr gest allg entspr österr resp "
    "Abs# Bd# Kap# Tel# Aufl# max# min#",
    "el": "καθ δηλ οδ λεωφ βλ πρβλ αγ στρ ταγμ υπ αρ# σελ# τηλ# κεφ# εικ# πίν# άρθρ# παρ# κ.~ά% κ.~α% "
    "περ% αι% εκ% χιλ% δισ% ώρ% σελ% τηλ%",
    "en": "Mx Mgr approx# est# vol# eq# ch# max# min# incl# excl# tel# approx% hrs% misc% figs% eds% "
    "repr% max% min% est% Mon% Tue% Thu% Sat% Sun%",
    "eo": "d-ro s-ro d-rino ekz inĝ vd pĝ# ĉap# n-ro# ktp% paĝ%",
    "es": "Profa Dña Cnel Tte Mons Fr Ilmo Sgto Pdte depto n# núm# aprox# a.~m% p.~m% a.~C% d.~C% aprox% "
    "ed% ene%",
    "et": "pr nt s.h kpt mag lk# tel# kell# jne% jms% jm% lk% eKr% pKr% mln% mld% saj% sh kl%",
    "eu": "adib ik or# kap# irud# tel#",
    "fa": "د ص#",
    "fi": "ts ns vrt hra rva nti ks klo# nro# noin# puh#",
    "fr": "M MM Mme Mmes Mlle Mlles Dr Pr Me Mgr St Ste bd prof gén coll c.-à-d n# no# p# vol# réf# ch# "
    "janv% févr% déc% min% max% J.-C%",
    "ga": "tUas Uas m.sh Naomh Uimh# lch#",
    "gl": "av Sta núm# páx# p# tel# cap# aprox#",
    "gu": "ડૉ શ્રી પ્રો કુ રૂ# નં#",
    "he": "פרופ מס# עמ#",
    "hi": "डॉ डा श्री श्रीमती प्रो पं कु मि इं एड सं# क्र# रु#",
    "hr": "dr prof ul npr tj tzv dipl akad fra mons br# str# čl# tel# itd% i~sl% tzn cca% tis% mil% mlrd% "
    "god% odn pr.~Kr% d.~o.~o%",
    "hu": "ifj özv ún Szt vö kb# tel# old# stb% kb% ld ui% uo% i.~sz% sz% old% tel% du% kft% zrt% bt% út%",
    "id": "Ir Dra Hj Tn Ny Sdr Sdri Jl Jln Kab Kec Yth Bpk Gg Jend Mayjen Letjen Brigjen Kapt KH hlm# "
    "tgl# Rp# dll% dsb% dst% dkk% tsb% ttg yg thn% bln% hlm% tgl% SM%",
    "is": "próf sbr bls# kl#",
    "it": "pag# pagg# n# nn# a.~C% d.~C% pag% cit%",
    "kn": "ಡಾ ಶ್ರೀ ಶ್ರೀಮತಿ ಪ್ರೊ ರೂ# ನಂ#",
    "lt": "doc inž pvz vad šv plg žr lent vyr asist mjr kpt plk kun apskr psl# tel# str# kt% pan% mėn% "
    "val% tūkst% mln% mlrd% pr.~Kr% psl%",
    "lv": "doc inž k-gs piem ģen sk asoc akad lpp# apm# tab# plkst# att# utt% u.~tml% utml% gs gad% m.~ē% "
    "p.~m.~ē% tūkst% milj% mljrd% lpp% apm%",
    "mk": "д-р проф доц инж ул т.е т.н св акад ген бул бр# стр# чл# тел#",
    "ml": "അഡ്വ രൂ# നമ്പർ#",
    "mr": "डॉ श्री प्रा सौ कु पं न्या उदा रु# क्र#",
    "ms": "Ir Pn Hj Hjh Jln Kg Sdn cth Kapt hlm# Rm# dll% dsb% dst%",
    "ne": "डा प्रा श्री पं इन्जि नं# रु#",
    "nl": "mevr mw ds kapt jhr mej d.w.z o.a incl excl tel# afb# jan% dec% afb%",
    "no": "f.eks dvs jf evt inkl ekskl pga ang vedr bl.a kl# kap# tlf# maks# osv% m.~fl% mv% f.~Kr% "
    "e.~Kr% mill% mrd% kr% kl% hhv% ift iflg vha mht",
    "pa": "ਡਾ ਸ੍ਰ ਪ੍ਰੋ ਨੰ# ਰੁ#",
    "pl": "dr hab inż mgr ks bp abp kard gen płk ppłk mjr kpt por ppor sierż św al pl tj tzw m.in m.~in "
    "wg mec dyr woj pow gm hr śp nr# str# s# ust# art# pkt# poz# ok# godz# tel# p# pp# r% w% godz% min% "
    "zł% tys% mln% mld% proc% n.~e% p.~n.~e% os% str% nr% rozdz% rys% zob red% im% ds",
    "pt": "Srta Profa Arq Av Pça Exma Ilmo Cel Cap Ten Pe Sta Trav Rod Estr Dep Gov Min n# núm# pág# p# "
    "pp# cap# vol# tel# aprox# máx# mín# p.~ex etc% a.~C% d.~C% aprox% ed% jan% fev% dez% séc% vol% pág% "
    "núm% máx% mín% tel% av",
    "ro": "dl d-l dna d-na dra av conf lect str bd jud com sf cpt acad arh șos dvs pag# alin# lit# cap# "
    "vol# tel# cca# aprox# bl# sc# ap# et# nr# ex% î.~Hr% d.~Hr% pag% vol% max% aprox% mil% mld%",
    "ru": "т.е т.~е д-р г-н г-жа пл доц инж ген полк кап лейт бул наб ср напр св англ нем фр лат рис# "
    "табл# гл# разд# ст# корп# ок# др% млн% млрд% коп% обл% р-н% им% н.~э%",
    "sk": "t.j plk kpt odst# čl# tab# tel#",
    "sl": "mag gdč ul npr tj t.i inž dipl polk akad pribl št# str# čl# tel# itd% ipd% tzv% cca% tis% mio% "
    "mrd% pr.~n.~št% str%",
    "sq": "znj inxh Shën akad gjen p.sh dmth Rr",
    "sr": "dr prof ul npr tj tzv dipl akad др проф инж мр ул нпр тј тзв св акад ген br# str# čl# tel# бр# "
    "стр# чл# тел# итд% и~сл% сл% хиљ% мил% год% мин% стр% в% д.~о.~о% н.~е% пр.~н.~е% itd% i~sl% hilj% "
    "god% min% str%",
    "sv": "t.ex t.~ex jfr ev resp inkl exkl dvs pga tel# kap# max# kl# sid# osv% m.~fl% f.~ö% f.~Kr% "
    "e.~Kr% kl% ung tkr% mkr%",
    "ta": "திரு திருமதி பேரா செல்வி ரூ# எண்#",
    "te": "డా శ్రీ శ్రీమతి ప్రొ రూ# నం#",
    "tr": "Doç Yrd Av Sn Müh Mah Cad Sok Sk Apt Blv bkz örn Alb Org Opr Uzm Ecz Hz Arş Öğr Gör ss# tel# "
    "vb% vd% M.~Ö% M.~S% yy% sa% dk% sn% TL% ss% yak% mah% cad% çev haz",
    "uk": "просп інж канд ген наприкл рис# табл# гл# тел# бл# тощо%",
    "vi": "TS GS PGS ThS KS LS TP Tp ĐT# TCN% SCN% tr%",
}  # fmt: skip
_SAME: Final = {"nb": "no", "nn": "no"}

# Languages that write an ordinal as a number with a full stop.
_WITH_ORDINALS: Final = re.compile("bs|cs|da|de|et|eu|fi|fo|hr|hu|is|lb|lt|lv|mk|no|pl|sk|sl|sq|sr|tr")
# German nouns are capital, so that it takes what stands before a number: "im 3. Stock".
_GERMAN_ORDINAL: Final = re.compile(
    r"\b(?:d(?:er|ie|as|en|em|es)|am|im|vom|zum|zur|beim|jede[rnms]?|diese[rnms]?|(?:ein|[mds]ein|ihr|unser)"
    r"(?:e[rnms]?)?)\s\d{1,3}\.\s+\Z",
    re.IGNORECASE,
)
_ORDINAL: Final = re.compile(r"(?<![\d.,])\d{1,4}\.\s+\Z")

_LONGEST: Final = 20  # characters of an abbreviation, with the white space after it
# What a sentence does not begin with: it stands after something ("n.º", "「行く。」と言った", "J.-C.").
_NO_BEGINNING: Final = re.compile(r"[ºª°%‰,)\]}，、）」』】]")
_HYPHENED: Final = re.compile(r"[-‐‑]\w")
# "J.-P. Sartre"; after "J.-C.", which is Christ, a sentence may end.
_INITIALS: Final = re.compile(r"(?<!\w)(?!J\.-C)[^\W\d_]\.-[^\W\d_]\.\s+\Z")
_QUOTED: Final = re.compile(r"[」』]\s*\Z")
_SAYING: Final = re.compile(r"と|って")


def goes_on(before: str, after: str, language: str) -> bool:
    """Whether two texts, which a segmenter of sentences has told apart, are of one sentence.

    after: all that follows, or the beginning of it.
    language: a subtag of BCP 47.
    """
    if _NO_BEGINNING.match(after) or (before.endswith(".") and _HYPHENED.match(after)):
        return True
    before, after = before[-_LONGEST:], after[:_LONGEST]
    if _QUOTED.search(before):
        return _SAYING.match(after) is not None
    if _INITIALS.search(before):
        return True
    language, small = _SAME.get(language, language), after[:1].islower()
    if small and _WITH_ORDINALS.fullmatch(language) and _ORDINAL.search(before):
        return True
    if language == "de" and after[:1].isupper() and _GERMAN_ORDINAL.search(before):
        return True
    found = _pattern(language, small).finditer(before + after)
    return any(match.start() < len(before) <= match.end() for match in found)


@cache
def _pattern(language: str, small: bool) -> re.Pattern[str]:
    """A language's abbreviations, with the white space after them where they end no sentence before a `small`
    letter, or before another character. One of several letters with stops may have been cut within."""
    either: list[str] = []
    inner: list[str] = []  # what is matched without its last full stop
    for word in sorted(_ABBREVIATIONS.get(language, "").split(), key=len, reverse=True):
        name = word.rstrip("#%")
        ends = word.endswith("%") and not small
        after = r"(?!\w)" if ends else r"\.\s*(?=\d)" if word.endswith("#") else r"\.\s*"
        spellings = dict.fromkeys([name, name[0].upper() + name[1:]])
        found = [re.escape(one).replace(r"\~", r"\s?") + after for one in spellings]
        if not ends:
            either += found
        elif "." in name:
            inner += found
    return re.compile(rf"(?<![\w.])(?:{'|'.join([*either, *inner, '(?!)'])})")
