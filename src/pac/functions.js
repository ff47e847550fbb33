// What a PAC script may call, but for myIpAddress. `lookup` is given, for dnsResolve alone.

{
    const lookup = globalThis.lookup;
    delete globalThis.lookup;
    globalThis.dnsResolve = (host) => lookup(String(host)) ?? null;
}

function isPlainHostName(host) {
    return !String(host).includes(".");
}

function dnsDomainIs(host, domain) {
    return String(host).toLowerCase().endsWith(String(domain).toLowerCase());
}

function localHostOrDomainIs(host, name) {
    host = String(host).toLowerCase();
    name = String(name).toLowerCase();
    return host === name || (!host.includes(".") && name.startsWith(host + "."));
}

function dnsDomainLevels(host) {
    return String(host).split(".").length - 1;
}

function isResolvable(host) {
    return dnsResolve(host) !== null;
}

// The number that an IPv4 address is; null for what is none.
function convert_addr(address) {
    const parts = String(address).split(".");
    if (parts.length !== 4 || !parts.every((part) => /^[0-9]{1,3}$/.test(part) && part <= 255)) {
        return null;
    }
    return parts.reduce((number, part) => number * 256 + Number(part), 0);
}

function isInNet(host, pattern, mask) {
    let address = convert_addr(host);
    if (address === null) {
        address = convert_addr(dnsResolve(host));
    }
    const net = convert_addr(pattern);
    const bits = convert_addr(mask);
    if (address === null || net === null || bits === null) {
        return false;
    }
    return (address & bits) === (net & bits);
}

// `*` is any text and `?` one character. In steps, without going back further than to the last star: no pattern is slow.
function shExpMatch(text, pattern) {
    text = String(text);
    pattern = String(pattern);
    let at = 0;
    let want = 0;
    let star = -1;
    let from = 0;
    while (at < text.length) {
        if (want < pattern.length && pattern[want] === "*") {
            star = want++;
            from = at;
        } else if (want < pattern.length && (pattern[want] === "?" || pattern[want] === text[at])) {
            want++;
            at++;
        } else if (star >= 0) {
            want = star + 1;
            at = ++from;
        } else {
            return false;
        }
    }
    while (pattern[want] === "*") {
        want++;
    }
    return want === pattern.length;
}

function alert() {}

{
    const DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
    const MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];

    // Now, in the zone that the arguments ask for, and the arguments without it.
    const clock = (args) => {
        const now = new Date();
        const parts = Array.from(args);
        const isUtc = String(parts[parts.length - 1]).toUpperCase() === "GMT";
        if (isUtc) {
            parts.pop();
        }
        const read = (what) => now[(isUtc ? "getUTC" : "get") + what]();
        return [read, parts];
    };

    // Whether a value lies in a range, which may go round.
    const isWithin = (value, from, to) =>
        from <= to ? from <= value && value <= to : from <= value || value <= to;

    globalThis.weekdayRange = function () {
        const [read, parts] = clock(arguments);
        const days = parts.map((part) => DAYS.indexOf(String(part).toUpperCase()));
        if (days.length < 1 || days.length > 2 || days.includes(-1)) {
            return false;
        }
        return isWithin(read("Day"), days[0], days[days.length - 1]);
    };

    // Each argument is a day, a month or a year by what it looks like; two of a kind are a range of all that is named.
    globalThis.dateRange = function () {
        const [read, parts] = clock(arguments);
        const kinds = parts.map((part) => {
            const month = MONTHS.indexOf(String(part).toUpperCase());
            if (month >= 0) {
                return ["month", month];
            }
            const number = Number(part);
            return [number > 31 ? "year" : "day", number];
        });
        const now = { year: read("FullYear"), month: read("Month"), day: read("Date") };
        const names = ["year", "month", "day"].filter((name) => kinds.some(([kind]) => kind === name));
        if (kinds.length === 0 || kinds.some(([, value]) => !Number.isInteger(value))) {
            return false;
        }
        if (kinds.length === names.length) {
            return kinds.every(([kind, value]) => now[kind] === value);
        }
        if (kinds.length !== 2 * names.length) {
            return false;
        }
        // Days and months as digits of one number.
        const number = (values) => names.reduce((sum, name) => sum * 100 + values[name], 0);
        const half = (some) => number(Object.fromEntries(some));
        const from = half(kinds.slice(0, names.length));
        const to = half(kinds.slice(names.length));
        return isWithin(number(now), from, to);
    };

    // Hours alone, hours and minutes, or those and seconds; the last of them is within as a whole.
    globalThis.timeRange = function () {
        const [read, parts] = clock(arguments);
        const numbers = parts.map(Number);
        if (![1, 2, 4, 6].includes(numbers.length) || numbers.some((number) => !Number.isInteger(number))) {
            return false;
        }
        const size = Math.max(1, numbers.length / 2);
        const units = [read("Hours"), read("Minutes"), read("Seconds")].slice(0, size);
        const number = (values) => values.reduce((sum, value) => sum * 60 + value, 0);
        const from = numbers.slice(0, size);
        const to = numbers.length === 1 ? from : numbers.slice(size);
        return isWithin(number(units), number(from), number(to));
    };
}
