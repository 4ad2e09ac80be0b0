// busy.js SECONDS: JavaScript that is compiled, and what it calls of the engine.
'use strict';

function fibonacci(n) {
  return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

function objects() {
  const all = [];
  for (let i = 0; i < 2000; i++) all.push({ id: (i * 7919) % 2003, name: `name ${i}` });
  all.sort((a, b) => a.id - b.id);
  return JSON.parse(JSON.stringify(all)).map((entry) => entry.name).join(' ');
}

const deadline = Date.now() + Number(process.argv[2]) * 1000;
let total = 0;
while (Date.now() < deadline) {
  total += fibonacci(20);
  const text = objects();
  total += text.replace(/(\w+) (\d+)/g, '$2 $1').length;
  total += text.split(' ').filter((word) => /^\d*7$/.test(word)).length;
}
process.exitCode = total > 0 ? 0 : 1;
