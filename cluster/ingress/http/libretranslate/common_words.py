"""What people type to try a translator: the commonest short messages and words, by language.

A few letters say little to a statistical detector, which takes "Hello World" for Italian. A word that several
languages have stands in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

_WORDS: Final[Mapping[str, str]] = {
    "en": "hello hi hey world goodbye bye thanks thank you please yes no ok okay sorry good morning "
          "evening night day afternoon welcome how are what who where when why love i the this is my your "
          "name friend cat dog house water food help stop home man woman time and not nice to meet see "
          "later cheers",
    "fr": "bonjour bonsoir salut coucou merci beaucoup oui non ok pardon désolé bienvenue au revoir bonne "
          "nuit journée comment ça va quoi qui où quand pourquoi amour je tu le la les un une est mon ton "
          "nom ami chat chien maison eau monde aide homme femme temps et pas s'il vous plaît plait "
          "d'accord",
    "de": "hallo guten tag morgen abend gute nacht tschüss tschüs danke schön bitte ja nein ok "
          "entschuldigung willkommen auf wiedersehen wie geht geht's was wer wo wann warum liebe ich du "
          "der die das ist ein eine mein dein name freund katze hund haus wasser welt hilfe mann frau "
          "zeit und nicht servus moin",
    "es": "hola buenos días buenas tardes noches adiós adios chao gracias muchas por favor sí si no ok "
          "perdón lo siento bienvenido bienvenidos hasta luego mañana qué que tal cómo como está estás "
          "quién dónde cuándo amor yo tú el la los las un una es mi tu nombre amigo gato perro casa agua "
          "mundo ayuda hombre mujer y",
    "it": "ciao buongiorno buonasera buonanotte salve arrivederci grazie mille prego per favore sì si no "
          "ok scusa scusi benvenuto come stai sta va che cosa chi dove quando perché amore io tu il la lo "
          "un una è mio tuo nome amico gatto cane casa acqua mondo aiuto uomo donna tempo e non bene",
    "pt": "olá ola oi bom dia boa tarde noite tchau adeus obrigado obrigada por favor sim não nao ok "
          "desculpe bem-vindo até logo como vai está estás quem onde quando porquê amor eu tu você o a os "
          "as um uma é meu seu nome amigo gato cachorro cão casa água mundo ajuda homem mulher tempo e "
          "tudo bem",
    "nl": "hallo hoi hey goedemorgen goedemiddag goedenavond goedenacht dag doei dank je wel bedankt "
          "alsjeblieft alstublieft ja nee oké sorry welkom tot ziens hoe gaat het wat wie waar wanneer "
          "waarom liefde ik jij de een is mijn naam vriend kat hond huis water wereld help man vrouw tijd "
          "en niet",
    "sv": "hej hejsan god morgon kväll natt dag adjö tack så mycket snälla ja nej ok förlåt ursäkta "
          "välkommen hur mår vad vem var när varför kärlek jag du är en ett min namn vän katt hund hus "
          "vatten världen värld hjälp man kvinna tid och inte",
    "da": "hej godmorgen godaften godnat god dag farvel tak mange venligst ja nej ok undskyld velkommen "
          "hvordan går det hvad hvem hvor hvornår hvorfor kærlighed jeg du er en et min navn ven kat hund "
          "hus vand verden hjælp mand kvinde tid og ikke",
    "no": "hei hallo god morgen kveld natt dag ha det takk tusen vennligst ja nei ok unnskyld velkommen "
          "hvordan går hva hvem hvor når hvorfor kjærlighet jeg du er en et min navn venn katt hund hus "
          "vann verden hjelp mann kvinne tid og ikke",
    "fi": "hei moi terve huomenta hyvää huomenta iltaa yötä päivää näkemiin kiitos paljon ole hyvä kyllä "
          "joo ei ok anteeksi tervetuloa mitä kuuluu kuka missä milloin miksi rakkaus minä sinä on nimi "
          "ystävä kissa koira talo vesi maailma apua mies nainen aika ja",
    "is": "halló hæ góðan daginn dag góða nótt bless takk fyrir já nei velkomin hvað hver hvar ég þú er "
          "vinur köttur hundur hús vatn heimur og ekki",
    "pl": "cześć hej dzień dobry dobry wieczór dobranoc żegnaj do widzenia pa dziękuję dzięki proszę tak "
          "nie ok przepraszam witaj witamy jak się masz co kto gdzie kiedy dlaczego miłość ty jest mój "
          "imię przyjaciel kot pies dom woda świat świecie pomoc mężczyzna kobieta czas i",
    "cs": "ahoj čau dobrý den dobré ráno dobrou noc večer nashledanou děkuji díky prosím ano ne ok "
          "promiňte vítejte jak se máš co kdo kde kdy proč láska já ty je můj jméno přítel kočka pes dům "
          "voda svět světe pomoc muž žena čas a",
    "sk": "ahoj čau dobrý deň dobré ráno dobrú noc večer dovidenia ďakujem prosím áno nie ok prepáčte "
          "vitajte ako sa máš čo kto kde kedy prečo láska ja ty je môj meno priateľ mačka pes dom voda "
          "svet pomoc muž žena čas",
    "sl": "zdravo živjo dober dan dobro jutro lahko noč nasvidenje hvala prosim ja ne oprostite "
          "dobrodošli kako si kaj kdo kje kdaj zakaj ljubezen jaz ti je moj ime prijatelj mačka pes hiša "
          "voda svet pomoč in",
    "hr": "bok zdravo dobar dan dobro jutro laku noć doviđenja hvala molim da ne oprostite dobrodošli "
          "kako si što tko gdje kada zašto ljubav ti je moj ime prijatelj mačka pas kuća voda svijet "
          "pomoć i",
    "hu": "szia sziasztok helló jó napot reggelt estét éjszakát napot viszlát viszontlátásra köszönöm "
          "köszi kérem igen nem ok bocsánat üdvözöljük hogy vagy mi ki hol mikor miért szerelem én te a "
          "az egy név barát macska kutya ház víz világ segítség férfi nő idő és",
    "ro": "bună salut bună ziua dimineața seara noapte bună la revedere mulțumesc multumesc te rog da nu "
          "ok scuze bine ai venit ce mai faci cine unde când de dragoste eu tu este un o meu nume prieten "
          "pisică câine casă apă lume ajutor bărbat femeie timp și",
    "tr": "merhaba selam günaydın iyi günler akşamlar geceler hoşça kal güle teşekkürler teşekkür ederim "
          "lütfen evet hayır tamam üzgünüm hoş geldiniz nasılsın nasılsınız ne kim nerede zaman neden aşk "
          "ben sen bir bu adım isim arkadaş kedi köpek ev su dünya yardım adam kadın ve",
    "et": "tere hommikust õhtust head ööd aitäh palun jah ei vabandust kuidas läheb mis kes kus miks "
          "armastus mina sina on sõber kass koer maja vesi maailm ja",
    "lv": "sveiki čau labdien labrīt labvakar paldies lūdzu jā nē kā iet kas kur kāpēc es tu ir draugs "
          "kaķis suns māja ūdens pasaule un",
    "lt": "labas sveiki laba diena labas rytas vakaras ačiū prašau taip ne kaip sekasi kas kur kodėl aš "
          "tu yra draugas katė šuo namas vanduo pasaulis ir",
    "id": "halo hai selamat pagi siang sore malam tinggal jalan terima kasih tolong silakan ya tidak maaf "
          "datang apa kabar siapa di mana kapan mengapa kenapa cinta saya aku kamu ini nama teman kucing "
          "anjing rumah air dunia bantuan pria wanita waktu dan",
    "ms": "helo hai selamat pagi petang malam tinggal terima kasih tolong ya tidak maaf datang apa khabar "
          "siapa di mana bila mengapa cinta saya awak ini nama kawan kucing anjing rumah air dunia dan",
    "tl": "kumusta kamusta magandang umaga hapon gabi araw paalam salamat po oo hindi patawad ano sino "
          "saan kailan bakit mahal ako ikaw ang pangalan kaibigan pusa aso bahay tubig mundo at",
    "vi": "xin chào chào tạm biệt cảm ơn cám ơn vâng không làm ơn xin lỗi bạn khỏe tôi yêu em anh là gì "
          "ai ở đâu mèo chó nhà nước thế giới và",
    "sw": "habari jambo hujambo mambo asante sana tafadhali ndiyo hapana samahani karibu kwaheri nini "
          "nani wapi lini mimi wewe jina rafiki paka mbwa nyumba maji dunia na",
    "ca": "hola bon dia bona tarda nit adéu gràcies moltes si us plau sí no perdó benvingut estàs què qui "
          "on quan amor jo tu el la un una és meu nom amic gat gos casa aigua món ajuda i",
    "eu": "kaixo egun on arratsalde gabon agur eskerrik asko mesedez bai ez barkatu ongi etorri zer nor "
          "non noiz maite ni zu izena laguna katua txakurra etxea ura mundua eta",
    "eo": "saluton bonan matenon tagon vesperon nokton ĝis dankon bonvolu jes ne pardonu bonvenon kiel vi "
          "kio kiu kie kiam amo mi nomo amiko kato hundo domo akvo mondo kaj",
    "af": "hallo goeie môre more naand dag totsiens dankie asseblief ja nee jammer welkom hoe gaan dit "
          "wat wie waar wanneer liefde ek jy die is my naam vriend kat hond huis water wêreld en nie",
    "sq": "përshëndetje mirëdita mirëmëngjesi mirupafshim faleminderit të lutem po jo si jeni çfarë kush "
          "ku unë ti është emri shok mace qen shtëpi ujë bota dhe",
    "la": "salve ave vale gratias quid quis ubi amor ego mundus amicus canis domus aqua et non est",
    "ru": "привет здравствуйте здравствуй доброе утро добрый день вечер доброй ночи пока до свидания "
          "спасибо большое пожалуйста да нет ок извините как дела что кто где когда почему любовь я ты "
          "это мой имя друг кошка кот собака дом вода мир помощь мужчина женщина время и не",
    "uk": "привіт вітаю доброго ранку дня добрий день вечір надобраніч бувай до побачення дякую будь "
          "ласка так ні вибачте як справи що хто де коли чому любов я ти це мій ім'я друг кішка кіт "
          "собака дім вода світ допомога і не",
    "be": "прывітанне добры дзень дзякуй калі ласка так не выбачайце як справы што хто дзе каханне я ты "
          "сябар кот сабака дом вада свет і",
    "bg": "здравей здравейте добро утро добър ден вечер лека нощ довиждане чао благодаря моля да не "
          "съжалявам как си какво кой къде кога защо любов аз ти е име приятел котка куче къща вода свят "
          "и",
    "sr": "здраво ћао добар дан добро јутро лаку ноћ довиђења хвала молим да не извините како си шта ко "
          "где када зашто љубав ја ти је име пријатељ мачка пас кућа вода свет и",
    "mk": "здраво добар ден добро утро довидување благодарам молам да не како си што кој каде зошто љубов "
          "јас ти е пријател мачка куче куќа вода свет и",
    "ar": "مرحبا مرحباً أهلا أهلاً السلام عليكم صباح الخير مساء شكرا شكراً من فضلك نعم لا آسف كيف حالك "
          "ماذا أين متى لماذا حب أنا أنت هذا اسم صديق قطة كلب بيت ماء العالم",
    "fa": "سلام صبح بخیر شب خداحافظ ممنون متشکرم مرسی لطفا بله نه ببخشید خوش آمدید چطوری حال شما چیست کجا "
          "کی چرا عشق من تو این دوست گربه سگ خانه آب دنیا",
    "ur": "سلام السلام علیکم شکریہ براہ کرم جی ہاں نہیں معاف کیا حال ہے کون کہاں کب محبت میں آپ دوست بلی "
          "کتا گھر پانی دنیا",
    "he": "שלום היי בוקר טוב ערב לילה להתראות תודה רבה בבקשה כן לא סליחה מה שלומך מי איפה מתי למה אהבה "
          "אני אתה חבר חתול כלב בית מים עולם",
    "hi": "नमस्ते नमस्कार सुप्रभात शुभ रात्रि अलविदा धन्यवाद कृपया हाँ हां नहीं माफ़ कीजिए आप कैसे हैं "
          "क्या कौन कहाँ कब क्यों प्यार मैं तुम यह नाम दोस्त बिल्ली कुत्ता घर पानी दुनिया",
    "zh": "你好 您好 谢谢 謝謝 再见 再見 早上好 晚安 是 不 对不起 對不起 请 請 我爱你 我愛你",
}  # fmt: skip


@cache
def common_words() -> Mapping[str, frozenset[str]]:
    """The languages of each word."""
    found: dict[str, set[str]] = {}
    for language, words in _WORDS.items():
        for word in words.split():
            found.setdefault(word, set()).add(language)
    return {word: frozenset(languages) for word, languages in found.items()}
