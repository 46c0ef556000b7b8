"""Abbreviations that no sentence ends at, of languages whose segmenter does not know them."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

# By language: titles and other words that another always follows, and (with #) those that a number does,
# without their last full stop. What may end a sentence, as "etc." and "p.m.", is not here, nor what is a
# word of its own without the stop. Words in lower case may begin with a capital.
_ABBREVIATIONS: Final = {
    "af": "mnr mev mej ds genl kapt bv asb",
    "ar": "د أ أ.د ص#",
    "be": "вул т.е т.~е т.зв праф проф акад інж св ген рыс# табл# гл#",
    "bg": "д-р г-н г-жа арх т.е т.~е т.нар ж.к общ бл# вх# ет# ап#",
    "bn": "ড ডা মো মোঃ মি প্রকৌ অ্যাড নং#",
    "bs": "dr prof ul npr tj tzv dipl akad fra mons br# str# čl# tel#",
    "ca": "St Excm Il·lm Mn ctra pàg# aprox# tel#",
    "cs": "popř příp plk kpt mjr vč mj tř č# čís# odst# čl# tab# kap# obr#",
    "cy": "Parch Gol gw Athro tt# rh#",
    "da": "bl.a p.g.a cand min#",
    "de": "Fa Frl Dipl Dipl.-Ing Hrsg Abt inkl exkl zzgl einschl geb gegr gest allg entspr österr resp "
    "Abs# Bd# Kap# Tel# Aufl# max# min#",
    "el": "καθ δηλ οδ λεωφ βλ πρβλ αγ στρ ταγμ υπ αρ# σελ# τηλ# κεφ# εικ# πίν# άρθρ# παρ#",
    "en": "Mx Mgr approx# est# vol# eq# ch# max# min# incl# excl# tel#",
    "eo": "d-ro s-ro d-rino ekz inĝ vd pĝ# ĉap# n-ro#",
    "es": "Profa Dña Cnel Tte Mons Fr Ilmo Sgto Pdte depto n# núm# aprox#",
    "et": "pr nt s.h kpt mag lk# tel# kell#",
    "eu": "adib ik or# kap# irud# tel#",
    "fa": "د ص#",
    "fi": "ts ns vrt hra rva nti ks klo# nro# noin# puh#",
    "fr": "M MM Mme Mmes Mlle Mlles Dr Pr Me Mgr St Ste bd prof gén coll c.-à-d n# no# p# vol# réf# ch#",
    "ga": "tUas Uas m.sh Naomh Uimh# lch#",
    "gl": "av Sta núm# páx# p# tel# cap# aprox#",
    "gu": "ડૉ શ્રી પ્રો કુ રૂ# નં#",
    "he": "פרופ מס# עמ#",
    "hi": "डॉ डा श्री श्रीमती प्रो पं कु मि इं एड सं# क्र# रु#",
    "hr": "dr prof ul npr tj tzv dipl akad fra mons br# str# čl# tel#",
    "hu": "ifj özv ún Szt vö kb# tel# old#",
    "id": "Ir Dra Hj Tn Ny Sdr Sdri Jl Jln Kab Kec Yth Bpk Gg Jend Mayjen Letjen Brigjen Kapt KH "
    "hlm# tgl# Rp#",
    "is": "próf sbr bls# kl#",
    "it": "pag# pagg# n# nn#",
    "kn": "ಡಾ ಶ್ರೀ ಶ್ರೀಮತಿ ಪ್ರೊ ರೂ# ನಂ#",
    "lt": "doc inž pvz vad šv plg žr lent vyr asist mjr kpt plk kun apskr psl# tel# str#",
    "lv": "doc inž k-gs piem ģen sk asoc akad lpp# apm# tab# plkst# att#",
    "mk": "д-р проф доц инж ул т.е т.н св акад ген бул бр# стр# чл# тел#",
    "ml": "അഡ്വ രൂ# നമ്പർ#",
    "mr": "डॉ श्री प्रा सौ कु पं न्या उदा रु# क्र#",
    "ms": "Ir Pn Hj Hjh Jln Kg Sdn cth Kapt hlm# Rm#",
    "ne": "डा प्रा श्री पं इन्जि नं# रु#",
    "nl": "mevr mw ds kapt jhr mej d.w.z o.a incl excl tel# afb#",
    "no": "f.eks dvs jf evt inkl ekskl pga ang vedr bl.a kl# kap# tlf# maks#",
    "pa": "ਡਾ ਸ੍ਰ ਪ੍ਰੋ ਨੰ# ਰੁ#",
    "pl": "dr hab inż mgr ks bp abp kard gen płk ppłk mjr kpt por ppor sierż św al pl tj tzw m.in m.~in wg "
    "mec dyr woj pow gm hr śp nr# str# s# ust# art# pkt# poz# ok# godz# tel# p# pp#",
    "pt": "Srta Profa Arq Av Pça Exma Ilmo Cel Cap Ten Pe Sta Trav Rod Estr Dep Gov Min "
    "n# núm# pág# p# pp# cap# vol# tel# aprox# máx# mín#",
    "ro": "dl d-l dna d-na dra av conf lect str bd jud com sf cpt acad arh șos dvs "
    "pag# alin# lit# cap# vol# tel# cca# aprox# bl# sc# ap# et# nr#",
    "ru": "т.е т.~е д-р г-н г-жа пл доц инж ген полк кап лейт бул наб ср напр св англ нем фр лат "
    "рис# табл# гл# разд# ст# корп# ок#",
    "sk": "t.j plk kpt odst# čl# tab# tel#",
    "sl": "mag gdč ul npr tj t.i inž dipl polk akad pribl št# str# čl# tel#",
    "sq": "znj inxh Shën akad gjen p.sh dmth Rr",
    "sr": "dr prof ul npr tj tzv dipl akad др проф инж мр ул нпр тј тзв св акад ген "
    "br# str# čl# tel# бр# стр# чл# тел#",
    "sv": "t.ex t.~ex jfr ev resp inkl exkl dvs pga tel# kap# max# kl# sid#",
    "ta": "திரு திருமதி பேரா செல்வி ரூ# எண்#",
    "te": "డా శ్రీ శ్రీమతి ప్రొ రూ# నం#",
    "tr": "Doç Yrd Av Sn Müh Mah Cad Sok Sk Apt Blv bkz örn Alb Org Opr Uzm Ecz Hz Arş Öğr Gör ss# tel#",
    "uk": "просп інж канд ген наприкл рис# табл# гл# тел# бл#",
    "vi": "TS GS PGS ThS KS LS TP Tp ĐT#",
}  # fmt: skip
_SAME: Final = {"nb": "no", "nn": "no"}

_LONGEST: Final = 16  # characters of an abbreviation, with the white space after it
# What a sentence does not begin with: it stands after something ("n.º", "「行く。」と言った").
_NO_BEGINNING: Final = re.compile(r"[ºª°%‰,)\]}，、）」』】]")
_QUOTED: Final = re.compile(r"[」』]\s*\Z")
_SAYING: Final = re.compile(r"と|って")


def goes_on(before: str, after: str, language: str) -> bool:
    """Whether two texts, which a segmenter of sentences has told apart, are of one sentence.

    language: a subtag of BCP 47.
    """
    if _NO_BEGINNING.match(after):
        return True
    before, after = before[-_LONGEST:], after[:_LONGEST]
    if _QUOTED.search(before):
        return _SAYING.match(after) is not None
    found = _pattern(language).finditer(before + after)
    return any(match.start() < len(before) <= match.end() for match in found)


@cache
def _pattern(language: str) -> re.Pattern[str]:
    """A language's abbreviations, with the white space after them. One of several letters with stops may have
    been cut within."""
    either: list[str] = []
    words = _ABBREVIATIONS.get(_SAME.get(language, language), "").split()
    for word in sorted(words, key=len, reverse=True):
        name, number = word.rstrip("#"), r"(?=\d)" if word.endswith("#") else ""
        spellings = dict.fromkeys([name, name[0].upper() + name[1:]])
        either += (re.escape(one).replace(r"\~", r"\s?") + rf"\.\s*{number}" for one in spellings)
    return re.compile(rf"(?<![\w.])(?:{'|'.join(either) or '(?!)'})")
