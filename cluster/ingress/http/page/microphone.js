// A microphone's samples, a tenth of a second at a time; it runs beside the page, where the sound is.

class Microphone extends AudioWorkletProcessor {
  #samples = [];

  process([[channel]]) {
    if (channel) this.#samples.push(...channel);
    if (this.#samples.length >= sampleRate / 10) {
      this.port.postMessage(this.#samples);
      this.#samples = [];
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
