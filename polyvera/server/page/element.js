// Elements of the page. Text goes in as text: nothing from the server or a model is read as HTML.

export function byId(id) {
  return document.getElementById(id);
}

// A new element. fields: its properties (className, textContent, ...). children: elements or texts.
export function make(tag, fields = {}, ...children) {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
