# Bodies that no honest client sends: each is answered, in JSON, and leaves nothing behind.

use utf8;
use lib 't/lib';
use RegistryTest;
use FindBin;
require "$FindBin::Bin/hostile.pl";

my $node = RegistryTest->nginx(
    workers => 1, log_level => 'error',
    http    => "access_log off; keepalive_requests 1000000;\n"
        . 'registry main 128k { } registry guarded 128k { api_token sesame; } upstream backend { registry main; } upstream g { registry guarded; }',
    server  => 'location /upstream/ { registry_api main; } location /guarded/ { registry_api guarded; }',
);
my $JSON = 'Content-Type: application/json';

sub unchanged {
    my $servers = status($node)->{data};
    delete $_->{time_since_heartbeat} for @$servers;
    return JSON::PP->new->canonical->encode($servers);
}

# What comes back for these bytes, up to the end of the reply's line or the close. nginx waits for more
# of a body that it does not want.
sub first_reply {
    my ($bytes, %opt) = @_;
    my $client = $node->client;
    my $got = '';
    eval {
        $client->send($bytes);
        shutdown $client->socket, 1 if $opt{half_close};
        while ($got !~ /\r\n\r\n.*\n/s) {
            my $more = $client->read_some;
            last unless defined $more;
            $got .= $more;
        }
        1;
    } or $got .= "($@)";
    $client->close;
    return $got;
}

is(api($node, 'add', { host => '10.0.0.1', port => 80 })->{status}, 200, 'a server');
is(api($node, 'weight', { host => '10.0.0.1', port => 80, weight => 5 })->{status}, 200, 'with a weight');

# Body, type, status, message.
my @bodies = (
    [ 'a deep array',            '[' x 60_000,                              $JSON, qr/^Malformed JSON: / ],
    [ 'a deep object',           '{"a":' x 12_000,                          $JSON, qr/^Malformed JSON: recursion limit exceeded/ ],
    [ 'deep in a parameter',     '{"port":' . '[' x 30_000 . ']' x 30_000 . '}', $JSON, qr/^Malformed JSON: recursion limit exceeded/ ],
    [ 'as deep as JSON may be',  '{"port":' . '[' x 100 . ']' x 100 . '}',  $JSON, qr/^Parameter "port" must be a string or a number/ ],
    [ 'a number of 60,000 digits', '{"host":"10.0.0.1","port":' . '9' x 60_000 . '}', $JSON, qr/^(?:Malformed JSON: number out of range|Parameter "port" must be)/ ],
    [ 'a large exponent',        '{"host":"10.0.0.1","port":1e999999999}',  $JSON, qr/^Malformed JSON: number out of range/ ],
    [ 'a small exponent',        '{"host":"10.0.0.1","port":80e-999999999999999999999}', $JSON, qr/^(?:Malformed JSON|Parameter "port" must be)/ ],
    [ 'a fraction',              '{"host":"10.0.0.1","port":80.0}',         $JSON, qr/^Parameter "port" must be/ ],
    [ 'a negative number',       '{"host":"10.0.0.1","port":-80}',          $JSON, qr/^Parameter "port" must be/ ],
    [ 'more than 32 bits',       '{"host":"10.0.0.1","port":4294967376}',   $JSON, qr/^Parameter "port" must be/ ],
    [ 'more than 64 bits',       '{"host":"10.0.0.1","port":18446744073709551696}', $JSON, qr/^Parameter "port" must be/ ],
    [ 'a string of 60,000 bytes', '{"host":"' . 'a' x 60_000 . '","port":80}', $JSON, qr/^Parameter "host" must be/ ],
    [ 'a string of escapes',     '{"host":"' . '\u0000' x 10_000 . '","port":80}', $JSON, qr/^Parameter "host" must be/ ],
    [ 'half a surrogate',        '{"host":"\ud800","port":80}',             $JSON, qr/^Malformed JSON: / ],
    [ 'a name of 60,000 bytes',  '{"' . 'a' x 60_000 . '":1}',              $JSON, qr/^Unknown parameter "a{40}…"; known are / ],
    [ '9,000 members',           '{' . join(',', map { qq("$_":1) } 1 .. 6_000) . '}', $JSON, qr/^Unknown parameter "1"/ ],
    [ 'a member twice',          '{"host":"10.0.0.1","port":80,"port":81}', $JSON, qr/^Parameter "port" is given more than once/ ],
    [ 'a member twice, escaped', '{"host":"10.0.0.1","port":80,"p\u006frt":81}', $JSON, qr/^Parameter "port" is given more than once/ ],
    [ 'a member 5,000 times',    '{' . join(',', ('"port":80') x 5_000) . '}', $JSON, qr/^Parameter "port" is given more than once/ ],
    [ 'NUL bytes',               "\0" x 1_000,                              $JSON, qr/^Malformed JSON: / ],
    [ 'NUL in a string',         qq({"host":"10.0.0.1\0","port":80}),       $JSON, qr/^Malformed JSON: / ],
    [ 'NUL, escaped, in a string', '{"host":"10.0.0.1\u0000","port":80}',   $JSON, qr/^Parameter "host" must be/ ],
    [ 'invalid UTF-8',           qq({"host":"\xff\xfe","port":80}),         $JSON, qr/^Malformed JSON: / ],
    [ 'overlong UTF-8',          qq({"host":"\xc0\x80","port":80}),         $JSON, qr/^Malformed JSON: / ],
    [ 'a byte order mark',       qq(\xef\xbb\xbf{"host":"10.0.0.1","port":80}), $JSON, qr/^Malformed JSON: / ],
    [ 'UTF-16',                  join('', map { "$_\0" } split //, '{"port":80}'), $JSON, qr/^Malformed JSON: / ],
    [ 'what follows the object', '{"host":"10.0.0.1","port":80}{"port":81}', $JSON, qr/^Malformed JSON: trailing characters/ ],
    [ 'an array',                '[{"port":80}]',                           $JSON, qr/^Malformed JSON: / ],
    [ 'null',                    'null',                                    $JSON, qr/^Malformed JSON: / ],
    [ 'random bytes',            join('', map { chr(($_ * 7919) % 256) } 1 .. 60_000), $JSON, qr/^Malformed JSON: / ],
    [ 'random bytes as a form',  join('', map { chr(($_ * 7919) % 256) } 1 .. 60_000), undef, qr/^(?:Malformed percent|Unknown parameter)/ ],
    [ '30,000 separators',       'port=80' . '&' x 30_000 . 'port=80',      undef, qr/^Parameter "port" is given more than once/ ],
    [ '20,000 empty values',     'a=&' x 20_000,                            undef, qr/^Unknown parameter "a"/ ],
    [ 'percent signs',           '%' x 60_000,                              undef, qr/^Malformed percent-encoding in the body/ ],
    [ 'an escaped NUL',          'host=10.0.0.1%00&port=80',                undef, qr/^Parameter "host" must be/ ],
    [ 'escaped invalid UTF-8',   'ns=%ff%fe&port=80&host=10.0.0.1',         undef, qr/^Parameter "ns" must be/ ],
    [ 'plus and minus signs',    'host=10.0.0.1&port=%2B80',                undef, qr/^Parameter "port" must be/ ],
    [ 'zeros before a number',   'host=10.0.0.1&port=' . '0' x 50_000 . '99999999', undef, qr/^Parameter "port" must be/ ],
    [ 'gzip',                    "\x1f\x8b\x08\0\0\0\0\0\0\3" . 'x' x 100,  $JSON . "\r\nContent-Encoding: gzip", qr/^Malformed JSON: / ],
    [ 'another type',            'port=80',                                 'Content-Type: multipart/form-data; boundary=x', qr/^Content-Type must be/, 415 ],
);

my $before = unchanged();
for my $case (@bodies) {
    my ($name, $body, $type, $message, $status) = @$case;
    my $reply = $node->client->request('POST', '/upstream/add', body => $body, close => 1,
        headers => { map { /^(.*?): (.*)$/ ? ($1 => $2) : () } split /\r\n/, $type || '' });
    is($reply->{status}, $status || 400, "$name: refused");
    like($reply->{json}{message}, $message, 'in JSON that says why');
}
is(unchanged(), $before, 'and nothing has changed');

# Lengths that lie, and chunks that are none: what nginx itself does not let through is at least answered
# or closed, and the next connection is served.
my $head = "POST /upstream/add HTTP/1.1\r\nHost: a\r\n";
for my $case (
    [ 'longer than announced',      "${head}Content-Length: 4\r\n\r\nport=80&host=10.0.0.9",        qr/^HTTP\/1\.1 400 / ],
    [ 'shorter than announced',     "${head}Content-Length: 400\r\n\r\nport=80",                    qr/^\z/ ],
    [ 'of negative length',         "${head}Content-Length: -1\r\n\r\nport=80",                     qr/^HTTP\/1\.1 400 / ],
    [ 'of a length beyond 64 bits', "${head}Content-Length: 99999999999999999999999\r\n\r\n",       qr/^HTTP\/1\.1 400 / ],
    [ 'of a length beyond memory',  "${head}Content-Length: 9223372036854775807\r\n\r\nport=80",    qr/^HTTP\/1\.1 413 / ],
    [ 'of two lengths',             "${head}Content-Length: 7\r\nContent-Length: 8\r\n\r\nport=80", qr/^HTTP\/1\.1 400 / ],
    [ 'of a length and in chunks',  "${head}Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nport=80\r\n0\r\n\r\n", qr/^HTTP\/1\.1 400 / ],
    [ 'in chunks of no number',     "${head}Transfer-Encoding: chunked\r\n\r\nxyz\r\nport=80\r\n0\r\n\r\n", qr/^HTTP\/1\.1 400 / ],
    [ 'in a chunk of negative size', "${head}Transfer-Encoding: chunked\r\n\r\n-7\r\nport=80\r\n0\r\n\r\n", qr/^HTTP\/1\.1 400 / ],
    [ 'in a chunk beyond 64 bits',  "${head}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nport=80", qr/^HTTP\/1\.1 400 / ],
    [ 'in a chunk beyond memory',   "${head}Transfer-Encoding: chunked\r\n\r\n7ffffffffffffff\r\n" . 'p' x 70_000, qr/^HTTP\/1\.1 413 / ],
    [ 'in a chunk that is longer than said', "${head}Transfer-Encoding: chunked\r\n\r\n2\r\nport=80\r\n0\r\n\r\n", qr/^HTTP\/1\.1 400 / ],
    [ 'in 20,000 chunks of a byte', "${head}Transfer-Encoding: chunked\r\n\r\n" . "1\r\np\r\n" x 20_000 . "0\r\n\r\n", qr/^HTTP\/1\.1 400 .*Unknown parameter/s ],
    [ 'in 70,000 chunks of a byte', "${head}Transfer-Encoding: chunked\r\n\r\n" . "1\r\np\r\n" x 70_000 . "0\r\n\r\n", qr/^HTTP\/1\.1 413 / ],
    [ 'of an unknown encoding',     "${head}Transfer-Encoding: gzip, chunked\r\n\r\n7\r\nport=80\r\n0\r\n\r\n", qr/^HTTP\/1\.1 (?:400|501) / ],
    [ 'of 100,000 brackets',        "${head}$JSON\r\nContent-Length: 100000\r\n\r\n" . '[' x 100_000,  qr/^HTTP\/1\.1 413 / ],
    [ 'in HTTP/0.9',                "POST /upstream/add\r\n\r\nport=80",                            qr/^(?:HTTP\/1\.1 400 |\{|<html|\z)/ ],
) {
    my ($name, $bytes, $expected) = @$case;
    like(first_reply($bytes, half_close => $name eq 'shorter than announced'), $expected, "a body $name");
}
is(unchanged(), $before, 'and nothing has changed');
is($node->get('/upstream/health')->{status}, 200, 'the next request is served');

# A request inside a body stays a body, whether that is read or thrown away.
{
    my $inner = "POST /upstream/add?host=10.6.6.6&port=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    my $plain = 'Content-Length: ' . length($inner) . "\r\n\r\n$inner";
    my $chunks = join "\r\n", 'Transfer-Encoding: chunked', '', sprintf('%x', length $inner), $inner, '0', '', '';
    for my $case (
        [ 'POST /upstream/add', 400 ], [ 'POST /upstream/nothing', 404 ], [ 'PUT /upstream/add', 405 ],
        [ 'GET /upstream/health', 200 ], [ 'POST /guarded/add', 401 ], [ 'GET /guarded/health', 401 ],
        [ 'POST /upstream/status', 405 ],
    ) {
        my ($request, $status) = @$case;
        for my $body ($plain, $chunks) {
            my $client = $node->client;
            $client->send("$request HTTP/1.1\r\nHost: a\r\n${body}GET /upstream/health HTTP/1.1\r\nHost: a\r\n\r\n");
            my @replies = map { $client->response } 1, 2;
            is("$replies[0]{status} $replies[1]{status}", "$status 200", "a request inside the body of $request");
            is(length($client->{parser}->rest), 0, 'is not answered');
            $client->close;
        }
    }
    is(unchanged(), $before, 'and adds nothing');
}

# Each kind again and again. None makes the worker grow.
my %kinds = (
    'deep JSON'           => request('/upstream/add', '[' x 60_000, $JSON),
    'large numbers'       => request('/upstream/add', '{"port":' . '9' x 60_000 . '}', $JSON),
    'large strings'       => request('/upstream/add', '{"host":"' . 'a' x 60_000 . '","port":80}', $JSON),
    'many members'        => request('/upstream/add', '{' . join(',', ('"port":80') x 5_000) . '}', $JSON),
    'forms of 64k'        => request('/upstream/add', 'host=' . 'a' x 65_000 . '&port=80'),
    'many small fields'   => request('/upstream/add', 'a=&' x 20_000),
    'no token'            => request('/guarded/add', '{"port":' . '9' x 60_000 . '}', $JSON),
);
for my $kind (sort keys %kinds) {
    my %statuses;
    my $sent = 0;
    stays_flat($node, $kind, 5, 512, sub {
        my $got = flood($node, ($kinds{$kind}) x some(200));
        $statuses{$_} += $got->{$_} for keys %$got;
        $sent += some(200);
    });
    is_deeply(\%statuses, { $kind eq 'no token' ? 401 : 400 => $sent }, "$kind: all are answered");
}

# At nginx's default level none of this is worth a line, but what nginx itself says of broken chunks.
my @lines = grep { !/client sent invalid chunked body/ } split /\n/, $node->error_log;
is("@lines", '', 'no line in the error log');

$node->log_is_clean;
done_testing;
